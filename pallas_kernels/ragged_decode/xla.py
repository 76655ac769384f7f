"""ragged_decode through XLA, pool-major: every page against its owner's queries.

Each page gives a partial softmax (maximum, sum, weighted values); pages of one row then
merge by log-sum-exp. The cost is that of the slots kept, however they are spread over the
rows: nothing is padded to the longest row, no row is gathered.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import layout

LOWEST = -1e30  # a finite stand-in for -inf, so that exp(z - max) is never NaN


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: Float[Array, "B J pages tile H"],
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `reference.ragged_decode`; the third result is each slot's logit under its owner's
    queries (-inf where not live) when `return_logits`, else None. A page whose owner is -1
    is not read into any row, so a list of pages is a masked owner.
    """
    B, J, R, T, G, H = q.shape
    k, v = layout.split(entry)
    rows = jnp.clip(owner, 0, R - 1)[..., None, None, None]
    q_BJpTGH = jnp.take_along_axis(q, rows, axis=2)
    z = jnp.einsum(
        "bjptgh,bjpsh->bjptgs", q_BJpTGH, k, preferred_element_type=jnp.float32
    )
    z = z * scale
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    if bias is not None:
        z = z + bias[:, :, :, None, None]
    live = _live(owner, position, q_position, window)
    z = jnp.where(live, z, LOWEST)
    highest_BJpTG = z.max(axis=-1)
    p = jnp.where(live, jnp.exp(z - highest_BJpTG[..., None]), 0.0)
    o_BJpTGH = jnp.einsum(
        "bjptgs,bjpsh->bjptgh",
        p.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    out, lse = _merge_pages(owner, R, highest_BJpTG, p.sum(axis=-1), o_BJpTGH)
    logits = jnp.where(live, z, -jnp.inf) if return_logits else None
    return out.astype(q.dtype), lse, logits


def _live(owner, position, q_position, window):
    """Which slots each query sees: [B, J, pages, T, 1, P]."""
    p = position[:, :, :, None, None, :]
    ago = q_position[:, None, None, :, None, None] - p
    live = (owner >= 0)[..., None, None, None] & (p >= 0) & (ago >= 0)
    return live if window is None else live & (ago < window)


def _merge_pages(owner, R, highest, total, out):
    """Partial softmaxes of pages [B, J, pages, ...] to rows [B, J, R, ...]."""
    mine = owner[:, :, None] == jnp.arange(R)[None, None, :, None]  # B J R pages
    by_row = jnp.where(mine[..., None, None], highest[:, :, None], LOWEST)
    highest_BJRTG = by_row.max(axis=3)
    weight = jnp.exp(by_row - highest_BJRTG[:, :, :, None])
    weight = jnp.where(mine[..., None, None], weight, 0.0)  # B J R pages T G
    total_BJRTG = jnp.einsum("bjrptg,bjptg->bjrtg", weight, total)
    merged = jnp.einsum(
        "bjrptg,bjptgh->bjrtgh", weight, out, precision=jax.lax.Precision.HIGHEST
    )
    some = total_BJRTG > 0
    safe = jnp.where(some, total_BJRTG, 1.0)
    lse = jnp.where(some, jnp.log(safe) + highest_BJRTG, -jnp.inf)
    return merged / safe[..., None], lse
