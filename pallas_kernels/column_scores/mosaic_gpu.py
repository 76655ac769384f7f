"""column_scores on Hopper through Pallas' Mosaic GPU backend: two passes of products.

    rows     lse of every query: queries are the rows of z = q k^T, which a block holds
             while tiles of keys stream by, with an online maximum and sum
    columns  scores of every key: keys are the rows of z = k q^T, which a block holds
             while tiles of queries stream by; so the sum or the maximum over queries
             stays in registers, one number a key

Two warpgroups compute what a third copies, so that one multiplies while the other takes
exponentials. In the first pass several blocks share the keys of few queries, and their
parts are joined by log-sum-exp. The second pass is one block a multiprocessor, which
takes key blocks in turn, the ones that many queries see first.

Tiles that no row of a block sees, before the first and behind the last that one does,
are not read; those that every row sees whole, at one end, are not masked.

What stands around the passes is `passes.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.column_scores.mosaic_gpu_blocks import Sizes
from pallas_kernels.column_scores.mosaic_gpu_columns import columns_of
from pallas_kernels.column_scores.mosaic_gpu_rows import row_sums
from pallas_kernels.column_scores.passes import both_passes, by_batch

STATIC = ("scale", "reduce", "group", "sizes")


SIZES = {  # by head_dim, in at most 192 KB
    64: Sizes(stages=4),
    96: Sizes(stages=4),
    128: Sizes(),
    256: Sizes(rows=64, columns=64),
}


@partial(jax.jit, static_argnames=STATIC)
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
    sizes: Sizes | None = None,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """As `reference.column_scores`, of 16-bit queries and keys.

    Traced once for all layers of a model. Under vmap, rows of the batch.

    Raises:
      ValueError: the dtype or head_dim is not one that this kernel takes.
    """
    check(q, k)
    how = dict(scale=scale, sizes=sizes or SIZES[q.shape[-1]])
    rows, columns = partial(row_sums, **how), partial(columns_of, **how)
    passes = partial(both_passes, rows, columns, reduce=reduce, group=group)
    given = () if lse is None else (lse,)
    return by_batch(passes)(q, k, q_position, k_position, *given)


def check(q: Array, k: Array) -> None:
    """Says what this kernel cannot take, and what to use."""
    use = "Use xla.column_scores."
    if k.dtype not in (jnp.bfloat16, jnp.float16) or q.dtype != k.dtype:
        raise ValueError(
            f"The Mosaic GPU kernel takes queries and keys of one 16-bit dtype, not "
            f"{q.dtype} and {k.dtype}. {use}"
        )
    if q.shape[-1] not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        raise ValueError(f"head_dim {q.shape[-1]} is not one of {sizes}. {use}")
