"""The definition of ragged_decode: each row's slots gathered, and masked attention.

Row r (a kv head of a layer) reads the slots of its pages table[r], in order, up to
length[r]: slot s is slot s % P of page table[r, s // P]. For query t of the row:

    z_s   = cap(q_t . k_s * scale) + bias_s,    cap(z) = c tanh(z / c) with a soft cap c
    live  = 0 <= position_s <= position_t, and position_t - position_s < window if given
    lse   = log sum_live exp(z_s),   out = sum_live exp(z_s - lse) v_s

A row with no live slot gives out = 0 and lse = -inf. Scores and sums are fp32. A page
may be on the tables of several rows.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import KeysAndValues


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: KeysAndValues,
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J R T G S"],
]:
    """Returns (out, lse, logits of the row's slots, -inf where not live); S = M P."""
    B, J, R, M = table.shape
    b, j = jnp.arange(B)[:, None, None, None], jnp.arange(J)[None, :, None, None]

    def rows(x):
        """[B, J, pages, P, ...] to the slots of each row, [B, J, R, S, ...]."""
        return x[b, j, jnp.maximum(table, 0)].reshape(B, J, R, -1, *x.shape[4:])

    k, v = (rows(x).astype(jnp.float32) for x in (entry.k, entry.v))
    z = jnp.einsum("bjrtgh,bjrsh->bjrtgs", q.astype(jnp.float32), k) * scale
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    if bias is not None:
        z = z + rows(bias)[:, :, :, None, None]
    stored = rows(position)[:, :, :, None, None]
    ago = q_position[:, None, None, :, None, None] - stored
    slot = jnp.arange(stored.shape[-1])[None, None, None]
    read = (slot < length[..., None])[:, :, :, None, None]
    live = read & (stored >= 0) & (ago >= 0)
    if window is not None:
        live = live & (ago < window)
    z = jnp.where(live, z, -jnp.inf)
    highest = z.max(axis=-1, keepdims=True)
    p = jnp.exp(z - jnp.where(jnp.isfinite(highest), highest, 0.0))
    p = jnp.where(live, p, 0.0)
    total = p.sum(axis=-1)
    out = jnp.einsum("bjrtgs,bjrsh->bjrtgh", p, v)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    lse = jnp.log(total) + highest[..., 0]
    return out.astype(q.dtype), jnp.where(total > 0, lse, -jnp.inf), z
