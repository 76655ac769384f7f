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

Where queries are few, a group's heads are queries of one head, unless the reductions
tell heads apart. Logarithms are to the base 2.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.column_scores.mosaic_gpu_blocks import Sizes
from pallas_kernels.column_scores.mosaic_gpu_columns import columns_of
from pallas_kernels.column_scores.mosaic_gpu_rows import row_sums
from pallas_kernels.hopper import FLOOR, LOG2E, LOWEST

FEW = 128  # queries of a head that go with their group's
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
    how = dict(scale=scale, reduce=reduce, group=group)
    passes = partial(_passes, **how, sizes=sizes or SIZES[q.shape[-1]])

    @jax.custom_batching.custom_vmap
    def score(*arrays):
        return passes(*arrays)

    @score.def_vmap
    def _(axis_size, in_batched, *arrays):
        def fold(x, batched):
            x = x if batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = score(*jax.tree.map(fold, arrays, tuple(in_batched)))
        split = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        return split, jax.tree.map(lambda _: True, out)

    return score(q, k, q_position, k_position, *(() if lse is None else (lse,)))


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


def _passes(q, k, q_position, k_position, lse=None, *, scale, reduce, group, sizes):
    """Both passes, the first where lse is not given."""
    B, T, N, _ = q.shape
    S, K = k.shape[1:3]
    G = N // K
    one_head = T <= FEW
    asked = _one_head(q, q_position, K) if one_head else (q, q_position)
    seen = (q_position >= 0)[..., None]
    if lse is None:
        row = row_sums(*asked, k, k_position, scale=scale, sizes=sizes)
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
    how = dict(scale=scale, reduce=reduce, group=group, sizes=sizes)
    scores = columns_of(*asked, row, k, k_position, **how)
    if group == "mean":
        scores = scores * (1 / G)
    return scores[..., :S], lse


def _one_head(q, q_position, K: int):
    """[B, T G, K, H], [B, T G]: a group's heads as queries of one, side by side."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, K, N // K, H).swapaxes(2, 3).reshape(B, -1, K, H)
    return q, jnp.repeat(q_position, N // K, axis=1)
