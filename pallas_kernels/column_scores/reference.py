"""The definition of column_scores: the whole attention matrix, reduced over queries.

For query t of query head n (which reads kv head n // G), over the keys s of its row:

    z_ts  = q_t . k_s * scale
    live  = 0 <= k_position_s <= q_position_t
    lse_t = log sum_live exp(z_ts), unless it is given
    a_ts  = exp(z_ts - lse_t) where live, else 0
    s_s   = group_g( reduce_t a_ts )

reduce is the sum or the maximum over the queries, group the mean or the maximum over
the G query heads of a kv head. A query with q_position -1 pays nothing, a key with
k_position -1 gets nothing. A query without live keys has lse = -inf, and one whose lse
is not finite pays nothing. All is fp32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def column_scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, "B S"],
    *,
    scale: float,
    reduce: str = "sum",
    group: str | None = None,
    lse: Float[Array, "B T N"] | None = None,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """Returns (scores, lse); group None is the mean of sums, the maximum of maxima."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q32, k32 = q.astype(jnp.float32), k.astype(jnp.float32)
    q32 = q32.reshape(B, T, K, N // K, H)
    z = jnp.einsum("btkgh,bskh->bkgts", q32, k32, precision="highest") * scale
    key, query = k_position[:, None], q_position[:, :, None]
    live = ((key >= 0) & (key <= query))[:, None, None]
    z = jnp.where(live, z, -jnp.inf)
    if lse is None:
        highest = z.max(axis=-1, keepdims=True)
        highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
        total = jnp.exp(z - highest).sum(axis=-1)
        row = jnp.where(total > 0, jnp.log(total) + highest[..., 0], -jnp.inf)
        lse = row.transpose(0, 3, 1, 2).reshape(B, T, N)
    row = lse.reshape(B, T, K, N // K).transpose(0, 2, 3, 1)[..., None]
    pays = live & jnp.isfinite(row)
    a = jnp.where(pays, jnp.exp(z - jnp.where(pays, row, 0.0)), 0.0)
    by_head = a.sum(axis=3) if reduce == "sum" else a.max(axis=3)
    group = group or {"sum": "mean", "max": "max"}[reduce]
    return by_head.mean(axis=2) if group == "mean" else by_head.max(axis=2), lse
