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

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

LOG2E = math.log2(math.e)
LOWEST = -1e30  # a finite stand-in for -inf, in units of log 2
FLOOR = LOWEST / 2  # a maximum is at least this, so that exp2(LOWEST - maximum) is 0
LATEST = jnp.iinfo(jnp.int32).max
WORKERS = 2  # warpgroups that compute
FEW = 128  # queries of a head that go with their group's
NARROW = 64  # the fewest rows of a product
SHORT = 32  # the shortest tile of queries
IN_TURN = 2  # blocks of keys that are held at one time: one is read, one comes
REGISTERS = dict(compute=232, copy=40)  # of a thread: 64512 of 65536 in all
STATIC = ("scale", "reduce", "group", "sizes")


@dataclass(frozen=True)
class Sizes:
    """How the work is laid over the chip.

    blocks: of the grid's second pass; as many as the chip has multiprocessors. rows: of
    one warpgroup's product. columns: of a product, the tiles that stream by. stages:
    tiles in flight in the second pass; the first has two more.
    """

    blocks: int = 132
    rows: int = 128
    columns: int = 128
    stages: int = 2


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


def takes(q: Array, k: Array) -> bool:
    """Whether `check` says nothing."""
    try:
        check(q, k)
    except ValueError:
        return False
    return True


def _passes(q, k, q_position, k_position, lse=None, *, scale, reduce, group, sizes):
    """Both passes, the first where lse is not given."""
    B, T, N, _ = q.shape
    S, K = k.shape[1:3]
    G = N // K
    one_head = T <= FEW
    asked = _one_head(q, q_position, K) if one_head else (q, q_position)
    seen = (q_position >= 0)[..., None]
    if lse is None:
        row = _rows(*asked, k, k_position, scale=scale, sizes=sizes)
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
    scores = _columns(*asked, row, k, k_position, **how)
    if group == "mean":
        scores = scores * (1 / G)
    return scores[..., :S], lse


def _one_head(q, q_position, K: int):
    """[B, T G, K, H], [B, T G]: a group's heads as queries of one, side by side."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, K, N // K, H).swapaxes(2, 3).reshape(B, -1, K, H)
    return q, jnp.repeat(q_position, N // K, axis=1)


def _fill(x, axis: int, size: int, value=0):
    """`x` filled up along `axis` to a multiple of `size`."""
    short = [(0, 0)] * x.ndim
    short[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, short, constant_values=value)


def _copyable(x, size: int):
    """`x` with the tokens of a tile, or a multiple of 8; a copy finds 0 behind them."""
    return _fill(x, 1, size if x.shape[1] < size else 8)


def _spans(position_BX, size: int):
    """Lowest and highest position of each block, and whether all are positions."""
    position = position_BX.reshape(position_BX.shape[0], -1, size)
    some = position >= 0
    lowest = jnp.where(some, position, LATEST).min(axis=-1)
    return lowest, position.max(axis=-1), some.all(axis=-1)


def _bounds(live_BIJ, whole_BIJ, whole_first: bool) -> Int[Array, "B I 3"]:
    """Where the tiles of a block's loop begin, change, and end.

    Those that every row sees whole stand first (keys) or last (queries).
    """
    J = live_BIJ.shape[-1]
    j = jnp.arange(J, dtype=jnp.int32)[None, None]
    begin = jnp.where(live_BIJ, j, J).min(axis=-1)
    end = jnp.where(live_BIJ, j + 1, 0).max(axis=-1)
    if whole_first:
        change = jnp.where(whole_BIJ, J, j).min(axis=-1)
    else:
        change = jnp.where(whole_BIJ, 0, j + 1).max(axis=-1)
    begin = jnp.minimum(begin, end)
    return jnp.stack([begin, jnp.clip(change, begin, end), end], axis=-1)


def _load(ref, layout):
    """What stands in a part of memory, spread over registers in such a way."""
    return plgpu.layout_cast(ref[...], layout)


def _product(a, b):
    """a b^T in registers."""

    def run(ref):
        plgpu.wgmma(ref, a, b.transpose((1, 0)))
        return ref[...]

    shape = a.shape[-2], b.shape[-2]
    return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def _tiled(shape, dtype):
    """Memory that products read."""
    swizzle = 128 if shape[-1] % 64 == 0 else 64
    wide = swizzle // jnp.dtype(dtype).itemsize
    how = plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(shape, dtype, transforms=how)


def _launch(body, grid: int, out_type):
    """`body(block, thread, ...)` on two warpgroups that compute and one that copies."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(grid,),
        grid_names=("block",),
        num_threads=WORKERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def _roles(compute, copy):
    """Runs each warpgroup's part of a block."""
    thread = lax.axis_index("warpgroup")

    @pl.when(thread < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS["compute"], action="increase")
        compute(thread)

    @pl.when(thread == WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS["copy"], action="decrease")
        copy()


def _rows(q, q_position, k, k_position, *, scale, sizes: Sizes):
    """[B, N, T] log2 of the sum of a query's exponentials; about -1e30 for none."""
    B, T, N, H = q.shape
    K = k.shape[2]
    size = sizes.rows if T > WORKERS * NARROW else NARROW
    columns, stages = sizes.columns, sizes.stages + 2
    q_position = _fill(q_position, 1, WORKERS * size, -1)
    k_position = _fill(k_position, 1, columns, -1)
    q_low, q_high, _ = _spans(q_position, WORKERS * size)
    k_low, k_high, all_keys = _spans(k_position, columns)
    k_high = jnp.where(all_keys, k_high, LATEST)
    bounds = _bounds(
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
                q_at = _load(memory["q_at"].at[worker], of_queries)

                def step(tile, carry, masked):
                    highest, total = carry
                    stage = lax.rem(tile - begin, stages)
                    plgpu.barrier_wait(ready.at[stage])
                    z = _product(memory["q"].at[worker], memory["k"].at[stage])
                    z = z * (scale * LOG2E)
                    if masked:
                        k_at = _load(memory["k_at"].at[stage], of_keys)
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

            _roles(compute, copy)

        memory = dict(
            q=_tiled((WORKERS, size, H), q.dtype),
            q_at=plgpu.SMEM((WORKERS, size), jnp.int32),
            k=_tiled((stages, columns, H), q.dtype),
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
    kernel = _launch(rows_body, many * B * N * splits, out_type)
    parts = kernel(
        bounds, _copyable(q, size), q_position, _copyable(k, columns), k_position
    )[..., :T]
    if splits == 1:
        return parts[0]
    highest = parts.max(axis=0, keepdims=True)
    return highest[0] + jnp.log2(jnp.exp2(parts - highest).sum(axis=0))


def _columns(q, q_position, row, k, k_position, *, scale, reduce, group, sizes: Sizes):
    """[B, K, S'] columns of exp2(z - row), reduced over queries, then heads.

    row [B, N, T]: log2 of each query's sum, 1e30 for one that pays nothing. The mean
    over heads is a sum here. S' is S filled up to a multiple of a block.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    G, size, stages = N // K, sizes.rows, sizes.stages
    columns = min(sizes.columns, max(SHORT, 1 << (T - 1).bit_length()))
    q_position = _fill(q_position, 1, columns, -1)
    k_position = _fill(k_position, 1, WORKERS * size, -1)
    q_low, q_high, _ = _spans(q_position, columns)
    k_low, k_high, _ = _spans(k_position, WORKERS * size)
    # A query at -1 pays nothing by its row, and a key at -1 gets 0 in the end: neither
    # asks for a mask.
    bounds = _bounds(
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
                            z = _product(
                                memory["k"].at[slot, worker], memory["q"].at[stage]
                            )
                            less = _load(memory["row"].at[stage], of_queries)
                            z = z * (scale * LOG2E) - by_query(less)
                            if masked:
                                k_at = _load(memory["k_at"].at[slot, worker], of_keys)
                                k_at = lax.broadcast_in_dim(k_at, (size, columns), [0])
                                q_at = _load(memory["q_at"].at[stage], of_queries)
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
                        k_at = _load(memory["k_at"].at[slot, worker], of_keys)
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

            _roles(compute, copy)

        memory = dict(
            k=_tiled((IN_TURN, WORKERS, size, H), q.dtype),
            k_at=plgpu.SMEM((IN_TURN, WORKERS, size), jnp.int32),
            q=_tiled((stages, columns, H), q.dtype),
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
    return _launch(columns_body, blocks, out_type)(
        bounds,
        _copyable(q, columns),
        q_position,
        _fill(row, 2, columns, -LOWEST),
        _copyable(k, size),
        k_position,
    )
