"""The two passes of a column_scores kernel, and what stands around them.

    rows     lse of every query, unless it is given
    columns  what every key is paid: exp(z - lse), reduced over the queries

Where queries are few, a group's heads are queries of one head, unless the reductions
tell heads apart. Logarithms are to the base 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST

FEW = 128  # queries of a head that go with their group's


def both_passes(
    rows: Callable[..., Float[Array, "B N T"]],
    columns: Callable[..., Float[Array, "B K S"]],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, "B S"],
    lse: Float[Array, "B T N"] | None = None,
    *,
    reduce: str,
    group: str,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """As `reference.column_scores`, by the passes of a backend.

    rows(q, q_position, k, k_position): log2 of each query's sum, about LOWEST for none.
    columns(q, q_position, row, k, k_position, reduce=, group=): columns of
    exp2(z - row), reduced over queries, then heads, the mean over heads being a sum; a
    query that pays nothing has row = -LOWEST.
    """
    B, T, N, _ = q.shape
    K = k.shape[2]
    G = N // K
    one_head = T <= FEW
    asked = _one_head(q, q_position, K) if one_head else (q, q_position)
    seen = (q_position >= 0)[..., None]
    if lse is None:
        row = rows(*asked, k, k_position)
        if one_head:
            row = row.reshape(B, K, T, G).swapaxes(1, 2).reshape(B, T, N)
        else:
            row = row.swapaxes(1, 2)
        pays = (row > FLOOR) & seen
        lse = jnp.where(pays, row * (1 / LOG2E), -jnp.inf)
    else:
        row = lse * LOG2E
        pays = jnp.isfinite(lse) & seen
    row = jnp.where(pays, row, -LOWEST)
    if one_head and (reduce, group) in (("sum", "mean"), ("max", "max")):
        row = row.reshape(B, T, K, G).swapaxes(1, 2).reshape(B, K, T * G)
    else:
        asked, row = (q, q_position), row.swapaxes(1, 2)
    scores = columns(*asked, row, k, k_position, reduce=reduce, group=group)
    return (scores * (1 / G) if group == "mean" else scores), lse


def _one_head(q, q_position, K: int):
    """[B, T G, K, H], [B, T G]: a group's heads as queries of one, side by side."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, K, N // K, H).swapaxes(2, 3).reshape(B, -1, K, H)
    return q, jnp.repeat(q_position, N // K, axis=1)


def by_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays [B, ..], for which a batch of vmap is more of B."""

    @jax.custom_batching.custom_vmap
    def batched(*arrays):
        return function(*arrays)

    @batched.def_vmap
    def _(axis_size, in_batched, *arrays):
        def fold(x, is_batched):
            if not is_batched:
                x = jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = batched(*jax.tree.map(fold, arrays, tuple(in_batched)))
        split = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        return split, jax.tree.map(lambda _: True, out)

    return batched


def fill(x, axis: int, size: int, value=0):
    """`x` filled up along `axis` to a multiple of `size`."""
    short = [(0, 0)] * x.ndim
    short[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, short, constant_values=value)
