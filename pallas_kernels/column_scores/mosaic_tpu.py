"""column_scores on TPUs through Pallas' Mosaic backend: two passes of products.

    rows     lse of every query: a block of queries of all heads is held while blocks of
             keys pass, z = k q^T with a key a row
    columns  what every key is paid: a block of keys of all heads is held while blocks
             of queries pass, z = q k^T with a query a row

So what is reduced over stands in rows, and maxima and sums are of whole registers, with
nothing moved across lanes. Arrays are read as they lie, [tokens, heads, H], and heads
are put apart on the chip. Blocks of which no query sees a key are neither read nor
computed, and blocks that are seen whole are not masked. The cores of a chip take blocks
of keys in turn.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.column_scores.mosaic_tpu_blocks import (
    LANES,
    SUBLANES,
    How,
    Sizes,
)
from pallas_kernels.column_scores.mosaic_tpu_columns import columns_of
from pallas_kernels.column_scores.mosaic_tpu_rows import row_sums
from pallas_kernels.column_scores.passes import both_passes, by_batch

DTYPES = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
HEAD_DIMS = 64, 96, 128, 256


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
    """As `reference.column_scores`, of queries and keys of one dtype.

    Under vmap, rows of the batch. Raises ValueError as `check` does.
    """
    check(q, k)
    tiles = sizes() if tiles is None else tiles

    def of(one_pass):
        def run(q, q_position, *rest, **reductions):
            how = How(scale, fitted(tiles, q, k), interpret)
            return one_pass(q, q_position, *rest, **reductions, how=how)

        return run

    passes = partial(both_passes, of(row_sums), of(columns_of))
    score = by_batch(partial(passes, reduce=reduce, group=group))
    return score(q, k, q_position, k_position, *(() if lse is None else (lse,)))


def sizes() -> Sizes:
    """Those for the TPU that is compiled for."""
    try:
        tpu = pltpu.get_tpu_info()
    except ValueError:  # a machine without one, and no mesh that names it
        return Sizes()
    return Sizes(
        rows=tpu.mxu_column_size // 2,
        parts=tpu.num_cores,
        vmem=tpu.vmem_capacity_bytes * 15 // 16,
    )


def check(q: Array, k: Array) -> None:
    """Says what this kernel cannot take, and what to use.

    Raises:
      ValueError: the dtype, the head_dim, or the number of heads.
    """
    use = "use xla.column_scores."
    if k.dtype not in DTYPES or q.dtype != k.dtype:
        raise ValueError(
            f"The Mosaic TPU kernel takes queries and keys of one dtype, bfloat16 or "
            f"float32, not {q.dtype} and {k.dtype}; {use}"
        )
    if q.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(f"head_dim {q.shape[-1]} is not one of {known}; {use}")
    fitted(sizes(), q, k)


def fitted(tiles: Sizes, q: Any, k: Any) -> Sizes:
    """`tiles` for so many tokens and heads: few queries meet more keys.

    Raises:
      ValueError: not even the smallest blocks of so many heads fit on the chip.
    """
    queries = min(tiles.queries, _filled(q.shape[1], LANES))
    keys = min(tiles.keys * tiles.queries // queries, tiles.most)
    keys = min(keys, _filled(k.shape[1], LANES))
    # Bytes of a token: twice what comes, what is put apart and, of few heads, what that
    # takes; fp32 numbers of each head, or of all alike in all lanes.
    wide = _filled(q.shape[3], LANES) * q.dtype.itemsize
    N, K = (_filled(x.shape[2], SUBLANES) for x in (q, k))
    of_q, of_k = (x * (4 if x == SUBLANES else 3) * wide for x in (N, K))
    of_q += max(64 * N, 8 * N + 8 * LANES)
    of_k += max(4 * LANES, 32 * N)
    budget = tiles.vmem - tiles.spare
    while queries * of_q + keys * of_k > budget:
        if queries == keys == LANES:
            raise ValueError(
                f"Blocks of {LANES} tokens of {q.shape[2]} query and {k.shape[2]} kv "
                f"heads of {q.shape[3]} in {q.dtype} pass what a TPU core holds; "
                "use xla.column_scores."
            )
        if keys == LANES or queries > LANES and queries * of_q > keys * of_k:
            queries = _filled(queries // 2, LANES)
        else:
            keys = _filled(keys // 2, LANES)
    return replace(tiles, queries=queries, keys=keys)


def _filled(size: int, to: int) -> int:
    return -(-size // to) * to
