"""The attention that queries pay to the tokens each head has."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.seen import Seen
from pallas_kernels.column_scores import column_scores


def attention_paid(
    seen: Seen,
    q: Float[Array, "B T N H"],
    q_position: Int[Array, "B T"],
    tokens: Bool[Array, "B S"],
    lse: Float[Array, "B T N"] | None = None,
) -> Float[Array, "B K S"]:
    """sum_t mean_g softmax_j(q_gt k_j^T * scale), over keys j up to the query, fp32.

    tokens: the keys that count, where the head has them; others get 0. A query at -1
    pays nothing. lse: of the queries over those keys, where it is known; not of heads
    whose tokens differ.
    """
    B, S, K, H = seen.k.shape
    if seen.earlier is None:
        position = jnp.where(tokens, seen.position, -1)
        return column_scores(
            q, seen.k, q_position, position, scale=seen.scale, lse=lse
        )[0]

    def by_row(x):
        """[B, T, K * X, H] to [B * K, T, X, H]: heads whose tokens differ as rows."""
        T = x.shape[1]
        return x.reshape(B, T, K, -1, H).swapaxes(1, 2).reshape(B * K, T, -1, H)

    position_BKS = jnp.where(seen.by_head(tokens), seen.position[:, None], -1)
    scores, _ = column_scores(
        by_row(q),
        by_row(seen.k),
        jnp.repeat(q_position, K, axis=0),
        position_BKS.reshape(B * K, S),
        scale=seen.scale,
    )
    return scores.reshape(B, K, S)
