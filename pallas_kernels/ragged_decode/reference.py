"""The definition of ragged_decode: every query against every slot of its pool, masked.

For query t of row r (a kv head of a layer), over the slots s of the pages that r owns:

    z_s   = cap(q_t . k_s * scale) + bias_s,    cap(z) = c tanh(z / c) with a soft cap c
    live  = 0 <= position_s <= position_t, and position_t - position_s < window if given
    lse   = log sum_live exp(z_s),   out = sum_live exp(z_s - lse) v_s

A row with no live slot gives out = 0 and lse = -inf. Scores and sums are fp32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: Entry,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J R T G pages P"],
]:
    """Returns (out, lse, logits of every slot, -inf where it is not live)."""
    k, v = (x.astype(jnp.float32) for x in entry)
    z = jnp.einsum("bjrtgh,bjpsh->bjrtgps", q.astype(jnp.float32), k) * scale
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    if bias is not None:
        z = z + bias[:, :, None, None, None]
    rows = jnp.arange(q.shape[2])[None, None, :, None, None, None, None]
    owned = owner[:, :, None, None, None, :, None] == rows
    stored = position[:, :, None, None, None]
    ago = q_position[:, None, None, :, None, None, None] - stored
    live = owned & (stored >= 0) & (ago >= 0)
    if window is not None:
        live = live & (ago < window)
    z = jnp.where(live, z, -jnp.inf)
    highest = z.max(axis=(-2, -1), keepdims=True)
    p = jnp.exp(z - jnp.where(jnp.isfinite(highest), highest, 0.0))
    p = jnp.where(live, p, 0.0)
    total = p.sum(axis=(-2, -1))
    out = jnp.einsum("bjrtgps,bjpsh->bjrtgh", p, v)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    lse = jnp.log(total) + highest[..., 0, 0]
    return out.astype(q.dtype), jnp.where(total > 0, lse, -jnp.inf), z
