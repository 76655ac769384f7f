"""ragged_decode through XLA, pool-major: every page against its owner's queries.

    z_p = q_{owner(p)} k_p^T,    highest_r = max over the pages of r,
    out_r = sum_{p of r} exp(z_p - highest_r) v_p / sum_{p of r} exp(z_p - highest_r)

The cost is that of the slots kept, however they are spread over the rows: nothing is
padded to the longest row, and no row is gathered.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.layout import KeysAndValues

LOWEST = -1e30  # a finite stand-in for -inf, so that exp(z - highest) is never NaN


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: KeysAndValues,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    chunk: int | None = None,
) -> tuple[
    Float[Array, "B J R T G E"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `reference.ragged_decode`: out in q's dtype, lse in fp32; values may have another
    size E than keys. The third result is
    each slot's logit under its owner's queries (-inf where not live) when
    `return_logits`, else None. A page whose owner is -1 is not read into any row, so
    that a list of pages is a masked owner. chunk: see `op.ragged_decode`.
    """
    if chunk is not None:
        assert not return_logits
        how = dict(scale=scale, soft_cap=soft_cap, window=window)
        pool = entry, owner, position, bias
        return *_in_chunks(q, pool, q_position, chunk, how), None
    R = q.shape[2]
    row_BJp = jnp.clip(owner, 0, R - 1)
    q_BJpTGH = jnp.take_along_axis(q, row_BJp[..., None, None, None], axis=2)
    z_BJpTGP = jnp.einsum(
        "bjptgh,bjpsh->bjptgs", q_BJpTGH, entry.k, preferred_element_type=jnp.float32
    )
    z_BJpTGP = z_BJpTGP * scale
    if soft_cap is not None:
        z_BJpTGP = soft_cap * jnp.tanh(z_BJpTGP / soft_cap)
    if bias is not None:
        z_BJpTGP = z_BJpTGP + bias[:, :, :, None, None]
    seen = live(owner, position, q_position, window)
    z_BJpTGP = jnp.where(seen, z_BJpTGP, LOWEST)
    mine_BJRp = owner[:, :, None] == jnp.arange(R)[None, None, :, None]
    highest_BJRTG = _highest(z_BJpTGP.max(axis=-1), mine_BJRp)
    highest_BJpTG = jnp.take_along_axis(highest_BJRTG, row_BJp[..., None, None], axis=2)
    p_BJpTGP = jnp.where(seen, jnp.exp(z_BJpTGP - highest_BJpTG[..., None]), 0.0)
    o_BJpTGH = jnp.einsum(
        "bjptgs,bjpsh->bjptgh",
        p_BJpTGP.astype(entry.v.dtype),
        entry.v,
        preferred_element_type=jnp.float32,
    )
    total_BJRTG = _total(p_BJpTGP.sum(axis=-1), mine_BJRp)
    out_BJRTGH = _add_pages(o_BJpTGH, mine_BJRp)
    some = total_BJRTG > 0
    safe_BJRTG = jnp.where(some, total_BJRTG, 1.0)
    lse_BJRTG = jnp.where(some, jnp.log(safe_BJRTG) + highest_BJRTG, -jnp.inf)
    logits = jnp.where(seen, z_BJpTGP, -jnp.inf) if return_logits else None
    return (out_BJRTGH / safe_BJRTG[..., None]).astype(q.dtype), lse_BJRTG, logits


def live(
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    window: int | None,
) -> Bool[Array, "B J pages T 1 P"]:
    """Which slots each query sees."""
    stored = position[:, :, :, None, None, :]
    ago = q_position[:, None, None, :, None, None] - stored
    live = (owner >= 0)[..., None, None, None] & (stored >= 0) & (ago >= 0)
    return live if window is None else live & (ago < window)


def _highest(
    by_page: Float[Array, "B J pages T G"], mine: Bool[Array, "B J R pages"]
) -> Float[Array, "B J R T G"]:
    """Each row's largest logit."""
    by_row = jnp.where(mine[..., None, None], by_page[:, :, None], LOWEST)
    return by_row.max(axis=3)


def _total(
    by_page: Float[Array, "B J pages T G"], mine: Bool[Array, "B J R pages"]
) -> Float[Array, "B J R T G"]:
    """Each row's sum of weights."""
    return jnp.where(mine[..., None, None], by_page[:, :, None], 0.0).sum(axis=3)


def _add_pages(
    by_page: Float[Array, "B J pages T G H"], mine: Bool[Array, "B J R pages"]
) -> Float[Array, "B J R T G H"]:
    """Sums of pages by row; a product, because a segment sum would scatter."""
    return jnp.einsum(
        "bjrp,bjptgh->bjrtgh",
        mine.astype(jnp.float32),
        by_page,
        precision=jax.lax.Precision.HIGHEST,
    )


def join(
    out: Float[Array, "B J R T G E"],
    lse: Float[Array, "B J R T G"],
    more: Float[Array, "B J R T G E"],
    more_lse: Float[Array, "B J R T G"],
) -> tuple[Float[Array, "B J R T G E"], Float[Array, "B J R T G"]]:
    """Attention over two parts of the slots as one's over both; out and lse in fp32."""
    total = jnp.logaddexp(lse, more_lse)
    safe = jnp.where(jnp.isfinite(total), total, 0.0)
    weigh = jnp.exp(lse - safe)[..., None]
    weigh_more = jnp.exp(more_lse - safe)[..., None]
    return out * weigh + more.astype(jnp.float32) * weigh_more, total


def _in_chunks(q, pool, q_position, chunk: int, how: dict):
    """Reads the rows' own pages, `chunk` at a time, and joins them by log-sum-exp.

    They lie one after another; the loop ends with the last of them.
    """
    entry, owner, position, bias = pool
    count = (owner >= 0).sum(axis=-1)
    first = jnp.argmax(owner >= 0, axis=-1)
    size = min(chunk, owner.shape[-1])

    def part(i):
        at = i * size + jnp.arange(size)[None, None]
        real = at < count[..., None]
        index = jnp.where(real, first[..., None] + at, 0)

        def take(x):
            return jnp.take_along_axis(
                x, index.reshape(*index.shape, *[1] * (x.ndim - 3)), axis=2
            )

        return ragged_decode(
            q,
            jax.tree.map(take, entry),
            jnp.where(real, take(owner), -1),
            take(position),
            q_position,
            bias=None if bias is None else take(bias),
            **how,
        )[:2]

    def step(state):
        i, out, lse = state
        return i + 1, *join(out, lse, *part(i))

    none = (
        jnp.int32(0),
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], -jnp.inf, jnp.float32),
    )
    chunks = -(-count.max() // size)
    _, out, lse = jax.lax.while_loop(lambda state: state[0] < chunks, step, none)
    return out.astype(q.dtype), lse
