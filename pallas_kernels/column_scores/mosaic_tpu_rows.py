"""The first pass of column_scores on TPUs: what each query's exponentials sum to.

A block of queries is held while blocks of keys pass. z = k q^T has a key a row, so that
maxima and sums over keys are of whole registers: of each query one for every eighth
key, joined in the end. Cores take blocks of keys in turn, and XLA joins what they find.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.column_scores.mosaic_tpu_blocks import (
    LANES,
    LATEST,
    SUBLANES,
    How,
    blocks_of,
    by_sublane,
    column,
    parameters,
    product,
    put_apart,
    when_live,
    wide,
)
from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST


def row_sums(q, q_position, k, k_position, *, how: How) -> Float[Array, "B N T"]:
    """log2 of the sum of a query's exponentials; about LOWEST for none."""
    (B, T, N, H), K = q.shape, k.shape[2]
    queries, keys, parts = how.sizes.queries, how.sizes.keys, how.sizes.parts
    asked = blocks_of(q_position, queries, 1, -1)
    held = blocks_of(k_position, keys, parts, LATEST)
    steps = held.number // parts

    def key_block(part, b, i, x, q_low, q_high, k_low, k_high):
        """Where nothing is seen, the block that comes first for the next queries."""
        j = x * parts + part
        live = k_low[b * held.number + j] <= q_high[b * asked.number + i]
        return b, jnp.minimum(jnp.where(live, j, part), held.real - 1)

    def k_block(*at):
        b, j = key_block(*at)
        return b, j, 0, 0

    def k_at_block(part, b, i, x, *_):
        return b, 0, x * parts + part

    found = pl.pallas_call(
        partial(_kernel, how=how),
        out_shape=jax.ShapeDtypeStruct((parts, B, N, asked.at.shape[2]), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(parts, B, asked.number, steps),
            in_specs=[
                pl.BlockSpec((1, queries, N, H), lambda p, b, i, *_: (b, i, 0, 0)),
                pl.BlockSpec((None, 1, queries), lambda p, b, i, *_: (b, 0, i)),
                pl.BlockSpec((1, keys, K, H), k_block),
                pl.BlockSpec((None, 1, keys), k_at_block),
            ],
            out_specs=pl.BlockSpec(
                (None, None, N, queries), lambda p, b, i, *_: (p, b, 0, i)
            ),
            scratch_shapes=[
                pltpu.VMEM((1, N, queries, H), q.dtype),
                pltpu.VMEM((1, K, keys, H), k.dtype),
                pltpu.VMEM((keys, LANES), jnp.int32),
                pltpu.VMEM((N, SUBLANES, queries), jnp.float32),
                pltpu.VMEM((N, SUBLANES, queries), jnp.float32),
            ],
        ),
        compiler_params=parameters(how),
        interpret=how.interpret,
        name="column_scores_rows",
    )(asked.low, asked.high, held.low, held.high, q, asked.at, k, held.at)
    return _joined(found)[..., :T]


def _joined(found):
    """Over the parts."""
    if found.shape[0] == 1:
        return found[0]
    highest = found.max(axis=0)
    return highest + jnp.log2(jnp.exp2(found - highest[None]).sum(axis=0))


def _kernel(
    q_low,
    q_high,
    k_low,
    k_high,
    q_ref,
    q_at_ref,
    k_ref,
    k_at_ref,
    out_ref,
    q_heads,
    k_heads,
    k_at_column,
    highest_ref,
    total_ref,
    *,
    how: How,
):
    part, b, i, x = (pl.program_id(axis) for axis in range(4))
    parts, size = how.sizes.parts, min(how.sizes.rows, k_ref.shape[1])
    (_, N, queries, _), (_, K, keys, _) = q_heads.shape, k_heads.shape
    G = N // K
    mine = b * pl.num_programs(2) + i
    theirs = b * pl.num_programs(3) * parts + x * parts + part
    live = k_low[theirs] <= q_high[mine]
    whole = k_high[theirs] <= q_low[mine]

    @pl.when(x == 0)
    def _():
        put_apart(q_ref, q_heads)
        highest_ref[...] = jnp.full(highest_ref.shape, FLOOR, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)

    def add(masked: bool):
        def of_head(n, _):
            q = q_heads[0, n]

            def of_keys(chunk, state):
                highest, total = state
                here = pl.ds(pl.multiple_of(chunk * size, size), size)
                z = product(k_heads[0, lax.div(n, G), here], q) * (how.scale * LOG2E)
                if masked:
                    seen = wide(k_at_column[here], queries) <= q_at_ref[...]
                    z = jnp.where(seen, z, LOWEST)
                z = by_sublane(z)
                higher = jnp.maximum(highest, z.max(axis=0))
                p = jnp.exp2(z - higher[None]).sum(axis=0)
                return higher, total * jnp.exp2(highest - higher) + p

            state = highest_ref[n], total_ref[n]
            state = lax.fori_loop(0, keys // size, of_keys, state, unroll=True)
            highest_ref[n], total_ref[n] = state
            return _

        lax.fori_loop(0, N, of_head, None)

    def mask():
        k_at_column[...] = column(k_at_ref[...])

    when_live(live, whole, partial(put_apart, k_ref, k_heads), mask, add)

    @pl.when(x == pl.num_programs(3) - 1)
    def _():
        def finish(n, _):
            highest = highest_ref[n].max(axis=0, keepdims=True)
            share = jnp.exp2(highest_ref[n] - highest)
            total = (total_ref[n] * share).sum(axis=0, keepdims=True)
            some = total > 0
            row = highest + jnp.log2(jnp.where(some, total, 1.0))
            out_ref[pl.ds(n, 1)] = jnp.where(some, row, LOWEST)
            return _

        lax.fori_loop(0, N, finish, None)
