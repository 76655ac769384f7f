"""column_scores on TPUs through Pallas' Mosaic backend: two passes of products.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.column_scores.mosaic_tpu_blocks import LANES, How, Sizes
from pallas_kernels.column_scores.mosaic_tpu_columns import columns_of
from pallas_kernels.column_scores.mosaic_tpu_rows import row_sums
from pallas_kernels.column_scores.passes import both_passes, by_batch


def column_scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, "B S"],
    *,
    scale: float,
    reduce: str,
    group: str,
    lse: Float[Array, "B T N"] | None = None,
    tiles: Sizes | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """As `reference.column_scores`."""
    check(q, k)
    how = partial(How, scale, interpret=interpret)
    tiles = sizes() if tiles is None else tiles
    def rows(q, q_position, k, k_position):
        s = how(fitted(tiles, q, k))
        return row_sums(q, q_position, k, k_position, how=s)
    def columns(q, q_position, row, k, k_position, **rest):
        s = how(fitted(tiles, q, k))
        return columns_of(q, q_position, row, k, k_position, **rest, how=s)
    score = by_batch(partial(both_passes, rows, columns, reduce=reduce, group=group))
    return score(q, k, q_position, k_position, *(() if lse is None else (lse,)))


def check(q, k):
    pass


def sizes():
    try:
        tpu = pltpu.get_tpu_info()
    except ValueError:
        return Sizes()
    return Sizes(parts=tpu.num_cores, vmem=tpu.vmem_capacity_bytes * 3 // 4)

def fitted(tiles, q, k):
    from dataclasses import replace
    T, S = q.shape[1], k.shape[1]
    up = lambda x: -(-x // LANES) * LANES
    return replace(tiles, queries=min(tiles.queries, up(T)), keys=min(tiles.keys, up(S)))
