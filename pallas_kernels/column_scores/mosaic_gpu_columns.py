"""The second pass of column_scores on Hopper: what each key is paid."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.column_scores.mosaic_gpu_blocks import (
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
from pallas_kernels.log2 import LOG2E, LOWEST

SHORT = 32  # the shortest tile of queries
IN_TURN = 2  # blocks of keys that are held at one time: one is read, one comes


def columns_of(
    q, q_position, row, k, k_position, *, scale, reduce, group, sizes: Sizes
):
    """[B, K, S] columns of exp2(z - row), reduced over queries, then heads.

    row [B, N, T]: log2 of each query's sum, 1e30 for one that pays nothing. The mean
    over heads is a sum here.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G, size, stages = N // K, sizes.rows, sizes.stages
    columns = min(sizes.columns, max(SHORT, 1 << (T - 1).bit_length()))
    q_position = fill(q_position, 1, columns, -1)
    k_position = fill(k_position, 1, WORKERS * size, -1)
    q_low, q_high, _ = spans(q_position, columns)
    k_low, k_high, _ = spans(k_position, WORKERS * size)
    # A query at -1 pays nothing by its row, and a key at -1 gets 0 in the end: neither
    # asks for a mask.
    bounds = bounds_of(
        k_low[..., None] <= q_high[:, None],
        k_high[..., None] <= q_low[:, None],
        whole_first=False,
    )
    items = bounds.shape[1] * B * K
    blocks = min(sizes.blocks, items)

    def columns_body(bounds, q, q_position, row, k, k_position, out):
        at = lax.axis_index("block")

        def walk(item_body):
            """item_body(b, kv head, block of keys, its bounds, counts) -> counts.

            Back and forth over the list, whose items cost less and less, so that all
            take about as much. counts: blocks of keys and tiles of queries so far.
            """

            def step(turn, counts):
                odd = lax.rem(turn, 2) == 1
                item = turn * blocks + jnp.where(odd, blocks - 1 - at, at)
                block, head = lax.div(item, B * K), lax.rem(item, B * K)
                b, kv = lax.div(head, K), lax.rem(head, K)
                block = jnp.minimum(block, bounds.shape[1] - 1)
                begin, change, end = (bounds[b, block, i] for i in range(3))
                end = jnp.where(item < items, end, begin)
                change = jnp.minimum(change, end)
                item_body(item, b, kv, block, (begin, change, end), counts)
                held, passed = counts
                some = jnp.where(end > begin, 1, 0)
                return held + some, passed + G * (end - begin)

            nothing = jnp.int32(0), jnp.int32(0)
            lax.fori_loop(0, -(-items // blocks), step, nothing)

        def scoped(memory, barriers):
            ready, consumed, k_ready, k_consumed = barriers

            def copy():
                fetch = plgpu.copy_gmem_to_smem

                def item_body(item, b, kv, block, tiles, counts):
                    del item
                    (begin, _, end), (held, passed) = tiles, counts
                    slot = lax.rem(held, IN_TURN)

                    @pl.when((end > begin) & (held >= IN_TURN))
                    def _():
                        plgpu.barrier_wait(k_consumed.at[slot])

                    @pl.when(end > begin)
                    def _():
                        here = k_ready.at[slot]
                        for worker in range(WORKERS):
                            tokens = pl.ds((block * WORKERS + worker) * size, size)
                            place = memory["k"].at[slot, worker]
                            fetch(k.at[b, tokens, kv], place, here)
                            place = memory["k_at"].at[slot, worker]
                            fetch(k_position.at[b, tokens], place, here)

                    @pl.loop(0, G)
                    def _(g):
                        @pl.loop(begin, end)
                        def _(tile):
                            now = passed + g * (end - begin) + (tile - begin)
                            stage = lax.rem(now, stages)

                            @pl.when(now >= stages)
                            def _():
                                plgpu.barrier_wait(consumed.at[stage])

                            tokens = pl.ds(tile * columns, columns)
                            n, here = kv * G + g, ready.at[stage]
                            fetch(q.at[b, tokens, n], memory["q"].at[stage], here)
                            source = q_position.at[b, tokens]
                            fetch(source, memory["q_at"].at[stage], here)
                            fetch(row.at[b, n, tokens], memory["row"].at[stage], here)

                walk(item_body)

            def compute(worker):
                of_keys = plgpu.Layout.WGMMA.reduce(1)
                of_queries = plgpu.Layout.WGMMA.reduce(0)
                nothing = 0.0 if reduce == "sum" else LOWEST

                def filled(value):
                    x = jnp.full((size,), value, jnp.float32)
                    return plgpu.layout_cast(x, of_keys)

                def by_query(x):
                    return lax.broadcast_in_dim(x, (size, columns), [1])

                def item_body(item, b, kv, block, tiles, counts):
                    (begin, change, end), (held, passed) = tiles, counts
                    slot = lax.rem(held, IN_TURN)

                    @pl.when(end > begin)
                    def _():
                        plgpu.barrier_wait(k_ready.at[slot])

                    def of_head(g, found):
                        before = passed + g * (end - begin) - begin

                        def step(tile, paid, masked):
                            stage = lax.rem(before + tile, stages)
                            plgpu.barrier_wait(ready.at[stage])
                            z = product(
                                memory["k"].at[slot, worker], memory["q"].at[stage]
                            )
                            less = load(memory["row"].at[stage], of_queries)
                            z = z * (scale * LOG2E) - by_query(less)
                            if masked:
                                k_at = load(memory["k_at"].at[slot, worker], of_keys)
                                k_at = lax.broadcast_in_dim(k_at, (size, columns), [0])
                                q_at = load(memory["q_at"].at[stage], of_queries)
                                z = jnp.where(k_at <= by_query(q_at), z, LOWEST)
                            plgpu.barrier_arrive(consumed.at[stage])
                            if reduce == "sum":
                                return paid + jnp.exp2(z).sum(axis=1)
                            return jnp.maximum(paid, z.max(axis=1))

                        paid = filled(nothing)
                        over = partial(step, masked=True)
                        paid = lax.fori_loop(begin, change, over, paid)
                        over = partial(step, masked=False)
                        paid = lax.fori_loop(change, end, over, paid)
                        if reduce == "max":
                            paid = jnp.exp2(paid)
                        if group == "mean":
                            return found + paid
                        return jnp.maximum(found, paid)

                    found = lax.fori_loop(0, G, of_head, filled(0.0))

                    @pl.when(end > begin)
                    def _():
                        k_at = load(memory["k_at"].at[slot, worker], of_keys)
                        kept = jnp.where(k_at >= 0, found, 0.0)
                        plgpu.barrier_arrive(k_consumed.at[slot])
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        memory["out"].at[worker][...] = kept

                    @pl.when((end == begin) & (item < items))
                    def _():
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        memory["out"].at[worker][...] = filled(0.0)

                    @pl.when(item < items)
                    def _():
                        plgpu.commit_smem()
                        start = (block * WORKERS + worker) * size
                        there = out.at[b, kv, pl.ds(start, size)]
                        plgpu.copy_smem_to_gmem(memory["out"].at[worker], there)

                walk(item_body)
                plgpu.wait_smem_to_gmem(0)

            roles(compute, copy)

        memory = dict(
            k=tiled((IN_TURN, WORKERS, size, H), q.dtype, H),
            k_at=plgpu.SMEM((IN_TURN, WORKERS, size), jnp.int32),
            q=tiled((stages, columns, H), q.dtype, H),
            q_at=plgpu.SMEM((stages, columns), jnp.int32),
            row=plgpu.SMEM((stages, columns), jnp.float32),
            out=plgpu.SMEM((WORKERS, size), jnp.float32),
        )
        barriers = (
            plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=2 * WORKERS, num_barriers=IN_TURN),
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=IN_TURN),
        )
        pl.run_scoped(scoped, memory, barriers, collective_axes="warpgroup")

    out_type = jax.ShapeDtypeStruct((B, K, k_position.shape[1]), jnp.float32)
    paid = launch(columns_body, blocks, out_type)(
        bounds,
        copyable(q, columns),
        q_position,
        fill(row, 2, columns, -LOWEST),
        copyable(k, size),
        k_position,
    )
    return paid[..., : k.shape[1]]
