"""The second pass of column_scores on TPUs: what each key is paid.

A block of keys is held while blocks of queries pass, the last ones first. z = q k^T has
a query a row, so that sums and maxima over queries are of whole registers: of each key
one for every eighth query, joined in the end. Cores take blocks of keys in turn.
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
from pallas_kernels.column_scores.passes import fill
from pallas_kernels.log2 import LOG2E, LOWEST


def columns_of(
    q, q_position, row, k, k_position, *, reduce: str, group: str, how: How
) -> Float[Array, "B K S"]:
    """Columns of exp2(z - row), reduced over queries, then heads.

    row [B, N, T]: log2 of each query's sum, -LOWEST for one that pays nothing. The mean
    over heads is a sum here.
    """
    (B, _, N, H), (S, K) = q.shape, k.shape[1:3]
    queries, keys, parts = how.sizes.queries, how.sizes.keys, how.sizes.parts
    asked = blocks_of(q_position, queries, 1, -1)
    held = blocks_of(k_position, keys, parts, LATEST)
    together = (reduce, group) in (("sum", "mean"), ("max", "max"))

    def query_block(part, b, x, y, q_low, q_high, k_low, k_high):
        """Where nothing is seen, the block that comes first for the next keys."""
        i, j = asked.number - 1 - y, x * parts + part
        live = k_low[b * held.number + j] <= q_high[b * asked.number + i]
        return b, jnp.where(live, i, asked.number - 1)

    def of_queries(*at):
        b, i = query_block(*at)
        return b, 0, i

    def q_block(*at):
        b, i = query_block(*at)
        return b, i, 0, 0

    def k_block(part, b, x, *_):
        return b, jnp.minimum(x * parts + part, held.real - 1), 0, 0

    def of_keys(part, b, x, *_):
        return b, 0, x * parts + part

    scores = pl.pallas_call(
        partial(_kernel, reduce=reduce, group=group, how=how),
        out_shape=jax.ShapeDtypeStruct((B, K, held.at.shape[2]), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(parts, B, held.number // parts, asked.number),
            in_specs=[
                pl.BlockSpec((1, queries, N, H), q_block),
                pl.BlockSpec((None, 1, queries), of_queries),
                pl.BlockSpec((None, N, queries), of_queries),
                pl.BlockSpec((1, keys, K, H), k_block),
                pl.BlockSpec((None, 1, keys), of_keys),
            ],
            out_specs=pl.BlockSpec((None, K, keys), of_keys),
            scratch_shapes=[
                pltpu.VMEM((1, N, queries, H), q.dtype),
                pltpu.VMEM((queries, LANES), jnp.int32),
                pltpu.VMEM((queries, LANES), jnp.float32),
                pltpu.VMEM((1, K, keys, H), k.dtype),
                pltpu.VMEM((K if together else N, SUBLANES, keys), jnp.float32),
            ],
        ),
        compiler_params=parameters(how),
        interpret=how.interpret,
        name="column_scores_columns",
    )(
        asked.low,
        asked.high,
        held.low,
        held.high,
        q,
        asked.at,
        fill(row, 2, queries, -LOWEST),
        k,
        held.at,
    )
    return scores[..., :S]


def _kernel(
    q_low,
    q_high,
    k_low,
    k_high,
    q_ref,
    q_at_ref,
    row_ref,
    k_ref,
    k_at_ref,
    out_ref,
    q_heads,
    q_at_column,
    row_column,
    k_heads,
    paid_ref,
    *,
    reduce: str,
    group: str,
    how: How,
):
    part, b, x, y = (pl.program_id(axis) for axis in range(4))
    parts, size = how.sizes.parts, min(how.sizes.rows, q_ref.shape[1])
    (_, N, queries, _), (_, K, keys, _) = q_heads.shape, k_heads.shape
    G, nothing = N // K, 0.0 if reduce == "sum" else LOWEST
    apart = paid_ref.shape[0] // K  # heads of a group that are reduced on their own
    theirs = (b + 1) * pl.num_programs(3) - 1 - y
    mine = (b * pl.num_programs(2) + x) * parts + part
    live = k_low[mine] <= q_high[theirs]
    whole = k_high[mine] <= q_low[theirs]

    @pl.when(y == 0)
    def _():
        put_apart(k_ref, k_heads)
        paid_ref[...] = jnp.full(paid_ref.shape, nothing, jnp.float32)

    def add(masked: bool):
        def of_head(n, _):
            k, to = k_heads[0, lax.div(n, G)], lax.div(n * apart, G)
            row_column[...] = column(row_ref[pl.ds(n, 1)])

            def of_queries(chunk, paid):
                here = pl.ds(pl.multiple_of(chunk * size, size), size)
                z = product(q_heads[0, n, here], k) * (how.scale * LOG2E)
                z = z - wide(row_column[here], keys)
                if masked:
                    seen = k_at_ref[...] <= wide(q_at_column[here], keys)
                    z = jnp.where(seen, z, LOWEST)
                if reduce == "sum":
                    return paid + by_sublane(jnp.exp2(z)).sum(axis=0)
                return jnp.maximum(paid, by_sublane(z).max(axis=0))

            chunks, paid = queries // size, paid_ref[to]
            paid_ref[to] = lax.fori_loop(0, chunks, of_queries, paid, unroll=True)
            return _

        lax.fori_loop(0, N, of_head, None)

    def mask():
        q_at_column[...] = column(q_at_ref[...])

    when_live(live, whole, partial(put_apart, q_ref, q_heads), mask, add)

    @pl.when(y == pl.num_programs(3) - 1)
    def _():
        def finish(kv, _):
            heads = [paid_ref[kv * apart + g] for g in range(apart)]
            if reduce == "sum":
                heads = [paid.sum(axis=0, keepdims=True) for paid in heads]
            else:
                heads = [jnp.exp2(paid.max(axis=0, keepdims=True)) for paid in heads]
            paid = sum(heads) if group == "mean" else jnp.stack(heads).max(axis=0)
            out_ref[pl.ds(kv, 1)] = jnp.where(k_at_ref[...] < LATEST, paid, 0.0)
            return _

        lax.fori_loop(0, K, finish, None)
