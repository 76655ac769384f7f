"""The first pass of column_scores on Hopper: what each query's exponentials sum to."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.column_scores.mosaic_gpu_blocks import (
    LATEST,
    WORKERS,
    Sizes,
    bounds_of,
    copyable,
    launch,
    product,
    roles,
    spans,
)
from pallas_kernels.column_scores.passes import fill
from pallas_kernels.hopper import load, tiled
from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST

NARROW = 64  # the fewest rows of a product


def row_sums(q, q_position, k, k_position, *, scale, sizes: Sizes):
    """[B, N, T] log2 of the sum of a query's exponentials; about -1e30 for none."""
    B, T, N, H = q.shape
    K = k.shape[2]
    size = sizes.rows if T > WORKERS * NARROW else NARROW
    columns, stages = sizes.columns, sizes.stages + 2
    q_position = fill(q_position, 1, WORKERS * size, -1)
    k_position = fill(k_position, 1, columns, -1)
    q_low, q_high, _ = spans(q_position, WORKERS * size)
    k_low, k_high, all_keys = spans(k_position, columns)
    k_high = jnp.where(all_keys, k_high, LATEST)
    bounds = bounds_of(
        k_low[:, None] <= q_high[..., None],
        k_high[:, None] <= q_low[..., None],
        whole_first=True,
    )
    many, tiles = bounds.shape[1], k_position.shape[1] // columns
    splits = min(max(sizes.blocks // (B * N * many), 1), tiles)

    def rows_body(bounds, q, q_position, k, k_position, out):
        at = lax.axis_index("block")
        split, at = lax.rem(at, splits), lax.div(at, splits)
        n, at = lax.rem(at, N), lax.div(at, N)
        b, block = lax.rem(at, B), many - 1 - lax.div(at, B)
        begin, change, end = (bounds[b, block, i] for i in range(3))
        share = lax.div(end - begin + splits - 1, splits)
        begin = jnp.minimum(begin + split * share, end)
        end = jnp.minimum(begin + share, end)
        change = jnp.clip(change, begin, end)

        def start_of(worker):
            return (block * WORKERS + worker) * size

        def scoped(memory, barriers):
            ready, consumed, q_ready = barriers

            def copy():
                for worker in range(WORKERS):
                    tokens = pl.ds(start_of(worker), size)
                    here = q_ready.at[worker]
                    fetch = plgpu.copy_gmem_to_smem
                    fetch(q.at[b, tokens, n], memory["q"].at[worker], here)
                    fetch(q_position.at[b, tokens], memory["q_at"].at[worker], here)

                @pl.loop(begin, end)
                def _(tile):
                    stage = lax.rem(tile - begin, stages)

                    @pl.when(tile - begin >= stages)
                    def _():
                        plgpu.barrier_wait(consumed.at[stage])

                    tokens, here = pl.ds(tile * columns, columns), ready.at[stage]
                    source = k.at[b, tokens, lax.div(n, N // K)]
                    plgpu.copy_gmem_to_smem(source, memory["k"].at[stage], here)
                    source = k_position.at[b, tokens]
                    plgpu.copy_gmem_to_smem(source, memory["k_at"].at[stage], here)

            def compute(worker):
                of_queries = plgpu.Layout.WGMMA.reduce(1)
                of_keys = plgpu.Layout.WGMMA.reduce(0)

                def filled(value):
                    x = jnp.full((size,), value, jnp.float32)
                    return plgpu.layout_cast(x, of_queries)

                def by_query(x):
                    return lax.broadcast_in_dim(x, (size, columns), [0])

                plgpu.barrier_wait(q_ready.at[worker])
                q_at = load(memory["q_at"].at[worker], of_queries)

                def step(tile, carry, masked):
                    highest, total = carry
                    stage = lax.rem(tile - begin, stages)
                    plgpu.barrier_wait(ready.at[stage])
                    z = product(memory["q"].at[worker], memory["k"].at[stage])
                    z = z * (scale * LOG2E)
                    if masked:
                        k_at = load(memory["k_at"].at[stage], of_keys)
                        k_at = jnp.where(k_at >= 0, k_at, LATEST)
                        k_at = lax.broadcast_in_dim(k_at, (size, columns), [1])
                        z = jnp.where(k_at <= by_query(q_at), z, LOWEST)
                    plgpu.barrier_arrive(consumed.at[stage])
                    higher = jnp.maximum(highest, z.max(axis=1))
                    p = jnp.exp2(z - by_query(higher))
                    return higher, total * jnp.exp2(highest - higher) + p.sum(axis=1)

                carry = filled(FLOOR), filled(0.0)
                carry = lax.fori_loop(begin, change, partial(step, masked=False), carry)
                carry = lax.fori_loop(change, end, partial(step, masked=True), carry)
                highest, total = carry
                some = total > 0
                found = highest + jnp.log2(jnp.where(some, total, 1.0))
                memory["out"].at[worker][...] = jnp.where(some, found, LOWEST)
                plgpu.commit_smem()
                there = out.at[split, b, n, pl.ds(start_of(worker), size)]
                plgpu.copy_smem_to_gmem(memory["out"].at[worker], there)
                plgpu.wait_smem_to_gmem(0)

            roles(compute, copy)

        memory = dict(
            q=tiled((WORKERS, size, H), q.dtype, H),
            q_at=plgpu.SMEM((WORKERS, size), jnp.int32),
            k=tiled((stages, columns, H), q.dtype, H),
            k_at=plgpu.SMEM((stages, columns), jnp.int32),
            out=plgpu.SMEM((WORKERS, size), jnp.float32),
        )
        barriers = (
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=WORKERS),
        )
        pl.run_scoped(scoped, memory, barriers, collective_axes="warpgroup")

    out_type = jax.ShapeDtypeStruct((splits, B, N, q_position.shape[1]), jnp.float32)
    kernel = launch(rows_body, many * B * N * splits, out_type)
    parts = kernel(
        bounds, copyable(q, size), q_position, copyable(k, columns), k_position
    )[..., :T]
    if splits == 1:
        return parts[0]
    highest = parts.max(axis=0, keepdims=True)
    return highest[0] + jnp.log2(jnp.exp2(parts - highest).sum(axis=0))
