"""What is dropped leaves its mean: RazorAttention's compensation token."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxkv.kept import Kept
from jaxkv.parts import Merge
from jaxkv.seen import Seen
from jaxkv.select.top_k import rank_of


@dataclass(frozen=True)
class MeanSlot(Merge):
    """A head's last slot holds the mean of its N_d dropped keys and values.

        k^ = mean k_j,  v^ = mean v_j over the dropped,  logit q.k^ / sqrt(H) + log N_d

    The slot counts in the head's budget, so that one token more is dropped for it; it
    stands at the position of the first token that any head dropped. The logit's bias
    travels with the slot ("bias"). With equal keys among the dropped it is exact. A
    head that drops nothing has none. RazorAttention (arXiv 2407.15891), Algorithm 1.
    """

    @property
    def adds(self) -> bool:
        return True

    def __call__(self, seen: Seen, kept: Kept) -> Kept:
        B, S, K, _ = kept.k.shape
        stored_B1S = seen.stored[:, None]
        cut_BK = kept.length < seen.stored.sum(axis=1)[:, None]
        tokens_BK = jnp.where(cut_BK, jnp.maximum(kept.length - 1, 0), kept.length)
        dropped = stored_B1S & (rank_of(kept.order, S) >= tokens_BK[..., None])
        count_BK = dropped.sum(axis=-1).astype(jnp.float32)
        share = dropped.astype(jnp.float32) / jnp.maximum(count_BK, 1.0)[..., None]
        position_B = jnp.where(dropped.any(axis=1), seen.position, S).min(axis=1)
        slot_BK = jnp.where(cut_BK, jnp.maximum(kept.length - 1, 0), S)
        order = jnp.pad(kept.order, ((0, 0), (0, 0), (0, 1)))
        here = jnp.arange(order.shape[-1])[None, None] == slot_BK[..., None]
        bias = jnp.zeros((B, K, S + 1), jnp.float32)
        bias = bias.at[..., S].set(jnp.log(jnp.maximum(count_BK, 1.0)))

        def with_mean(x_BSKH):
            mean_BKH = jnp.einsum("BKS,BSKH->BKH", share, x_BSKH.astype(jnp.float32))
            return jnp.concatenate([x_BSKH, mean_BKH[:, None].astype(x_BSKH.dtype)], 1)

        return replace(
            kept,
            k=with_mean(kept.k),
            v=None if kept.v is None else with_mean(kept.v),
            position=jnp.concatenate([kept.position, position_B[:, None]], axis=1),
            order=jnp.where(here, S, order),
            slot_state={
                name: jnp.pad(x, ((0, 0), (0, 0), (0, 1)))
                for name, x in kept.slot_state.items()
            }
            | {"bias": bias},
        )
