"""ragged_decode on Hopper through Pallas' Mosaic GPU backend.

The tiles of all rows (64 slots of a page each) stand in one list, row after row, and
every block of the grid takes an equal share of it, wherever rows begin and end: batch 1
fills the chip, and rows of different lengths balance. What a block does of one row is a
piece; a second kernel joins each row's pieces by log-sum-exp.

    tiles_r = ceil(length_r / 64),   start_r = sum_{r' < r} tiles_r'
    block c takes the tiles [c share, (c + 1) share),   share = ceil(tiles / blocks)
    the piece of row r and block c is piece r + c: (r, c) only ever grow along the list

In a block one warpgroup copies tiles to shared memory ahead of another, which computes:
products with the slots as rows and the T G queries as columns (8 are the fewest), and
an online softmax between. Positions say what is live, so they are copied beside.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry
from pallas_kernels.ragged_decode.mosaic_gpu_join import (
    CHUNK,
    FLOOR,
    LOG2E,
    LOWEST,
    Shape,
    join,
    load,
    share_of,
)
from pallas_kernels.tuned import tuned

TILE = 64  # slots of a page that are read at one time, and the rows of a product
FEWEST = 8  # columns of a product
NO_TOKEN = jnp.iinfo(jnp.int32).max
COPY = 128  # numbers of a list that are copied at one time; 256 at most can be
AHEAD = 4  # tiles whose page is looked up before it is their turn


STAGES = {64: 6, 96: 4, 128: 3, 256: 2}  # by head_dim: about 100 KB in flight
SHARED = 227 * 1024  # bytes of memory that a block may have


@dataclass(frozen=True)
class Sizes:
    """How the work is laid over the chip.

    blocks: of the grid; as many as the chip has multiprocessors, or twice that. stages:
    tiles of keys and values in flight in each.
    """

    blocks: int = 132
    stages: int = 3


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: Entry,
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    sizes: Sizes | None = None,
    interpret=None,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """As `reference.ragged_decode`, of 16-bit entries, and logits by page.

    Logits of slots that no row reads are unspecified, those that are not live about
    -1e30.

    Raises:
      ValueError: the dtype, head_dim, page size or number of queries is not one that
        this kernel takes.
    """
    check(q, entry)
    B, J, R, T, G, H = q.shape
    pages, P = position.shape[2:]
    rows, queries = B * J * R, T * G
    padded = max(FEWEST, 1 << (queries - 1).bit_length())
    sizes = sizes or tuned("ragged_decode", H, Sizes, stages=STAGES[H])
    start = starts(length.reshape(rows))
    pool = partial(jnp.reshape, shape=(B * J * pages, P))
    seen_from = jnp.repeat(q_position, G, axis=1)
    shape = Shape(rows, R, J * R, pages, P, table.shape[-1], padded, H, sizes.blocks)
    pieces = rows + sizes.blocks - 1
    kernel = plgpu.kernel(
        partial(
            _read,
            shape=shape,
            stages=sizes.stages,
            scale=scale,
            soft_cap=soft_cap,
            window=window,
            has_bias=bias is not None,
            has_logits=return_logits,
        ),
        out_type=[
            jax.ShapeDtypeStruct((pieces, H, padded), jnp.float32),
            jax.ShapeDtypeStruct((pieces, CHUNK // padded, padded), jnp.float32),
            *[jax.ShapeDtypeStruct((B * J * pages, P, padded), jnp.float32)]
            * return_logits,
        ],
        grid=(sizes.blocks,),
        grid_names=("block",),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    read = kernel(
        start,
        table.reshape(rows, -1),
        jnp.pad(q.reshape(rows, queries, H), ((0, 0), (0, padded - queries), (0, 0))),
        jnp.pad(seen_from, ((0, 0), (0, padded - queries)), constant_values=-1),
        *(x.reshape(B * J * pages, P, H) for x in entry),
        pool(position),
        *(() if bias is None else (pool(bias.astype(jnp.float32)),)),
    )
    out, lse = join(read[0], read[1], start, shape, q.dtype, interpret)
    out = out[..., :queries].swapaxes(1, 2).reshape(q.shape)
    lse = lse[:, :queries].reshape(B, J, R, T, G)
    if not return_logits:
        return out, lse, None
    logits = read[2][..., :queries].swapaxes(1, 2)
    return out, lse, logits.reshape(B, J, pages, T, G, P)


def check(q: Array, entry: Entry) -> None:
    """Says what this kernel cannot take, and what to use."""
    T, G, H = q.shape[3:]
    P, dtype = entry.k.shape[3], entry.k.dtype
    use = "Use ragged_decode.xla."
    if dtype not in (jnp.bfloat16, jnp.float16) or q.dtype != dtype:
        raise ValueError(
            f"The Mosaic GPU kernel takes queries and entries of one 16-bit dtype, not "
            f"{q.dtype} and {dtype}. {use}"
        )
    if H not in (64, 96, 128, 256):
        raise ValueError(f"head_dim {H} is not one of 64, 96, 128, 256. {use}")
    if P % TILE:
        raise ValueError(f"Pages of {P} slots are no multiple of {TILE}. {use}")
    most = TILE // 2 if H == 256 else TILE  # what fits in shared memory
    if T * G > most:
        raise ValueError(
            f"T x G = {T} x {G} queries a kv head exceed {most} at head_dim {H}. {use}"
        )


def takes(q: Array, entry: Entry) -> bool:
    """Whether `check` says nothing."""
    try:
        check(q, entry)
    except ValueError:
        return False
    return True


def starts(length: Int[Array, " rows"]) -> Int[Array, " size"]:
    """Where each row's tiles begin in the list of all, and how many there are.

    [rows + 1], filled up with the number of tiles to what is copied at one time.
    """
    rows = length.shape[0]
    size = -(-(rows + 1) // COPY) * COPY
    before = jnp.arange(rows)[None] < jnp.arange(size)[:, None]
    tiles = -(-length // TILE)
    return jnp.where(before, tiles[None], 0).sum(axis=1, dtype=jnp.int32)


def _read(
    start,
    table,
    q,
    seen_from,
    k,
    v,
    position,
    *rest,
    shape: Shape,
    stages: int,
    scale: float,
    soft_cap: float | None,
    window: int | None,
    has_bias: bool,
    has_logits: bool,
):
    """One block: its tiles, copied by one warpgroup and computed by the other.

    Slots are the rows of both products, queries the columns: z [slots, queries] =
    k q^T and out [H, queries] = v^T p, so that few queries cost little.
    """
    bias, rest = (rest[0], rest[1:]) if has_bias else (None, rest)
    out, lse, *logits = rest
    H, N, rows, dtype = shape.H, shape.queries, shape.rows, k.dtype
    parts = shape.P // TILE  # tiles of a page
    # A product's rows come in multiples of 64: 32 of 96 values are computed twice.
    columns = min(H, 128) if H % TILE == 0 else TILE
    offsets = (0,) if columns == H else (0, H - columns)

    def body(memory, barriers):
        thread, block = lax.axis_index("warpgroup"), lax.axis_index("block")
        begins, come = memory["start"], barriers[-1]

        @pl.when(thread == 1)
        def _():
            for at in range(0, start.shape[0], COPY):
                part = pl.ds(at, COPY)
                plgpu.copy_gmem_to_smem(start.at[part], begins.at[part], come)

        plgpu.barrier_wait(come)
        tiles = begins[rows]
        share = share_of(tiles, shape.blocks)
        first = jnp.minimum(block * share, tiles)
        end = jnp.minimum(first + share, tiles)

        def halve(_, bounds):
            """The row of the first tile: the last that begins at or before it."""
            low, high = bounds
            middle = lax.div(low + high, 2)
            after = begins[middle] > first
            return jnp.where(after, low, middle), jnp.where(after, middle, high)

        steps = rows.bit_length()
        first_row, _ = lax.fori_loop(
            0, steps, halve, (jnp.int32(0), jnp.int32(rows)), unroll=True
        )

        def walk(row_body):
            """row_body(row, where its tiles begin in all, and begin and end here)."""

            def step(carry):
                row, at = carry
                begin, until = begins[row], begins[row + 1]
                row_body(row, begin, at, jnp.minimum(until, end))
                return row + 1, until

            lax.while_loop(lambda carry: carry[1] < end, step, (first_row, first))

        args = block, first, first_row, walk, memory, barriers
        pl.when(thread == 0)(lambda: compute(*args))
        pl.when(thread == 1)(lambda: copy(*args))

    def copy(block, first, first_row, walk, memory, barriers):
        ready, consumed, q_ready, q_consumed, _ = barriers

        def row_body(row, begin, low, high):
            pool = lax.div(row, shape.R) * shape.pages

            def page_of(at):
                m = jnp.minimum(lax.div(at - begin, parts), shape.M - 1)
                return table[row, m]

            ahead = tuple(page_of(low + i) for i in range(AHEAD))

            @pl.when(row > first_row)
            def _():
                plgpu.barrier_wait(q_consumed)

            plgpu.copy_gmem_to_smem(q.at[row], memory["q"], q_ready)
            seen = seen_from.at[lax.div(row, shape.sequence)]
            plgpu.copy_gmem_to_smem(seen, memory["q_at"], q_ready)

            def tile_body(at, ahead):
                page, *ahead = ahead
                part = lax.rem(at - begin, parts) * TILE
                stage = lax.rem(at - first, stages)
                later = page_of(at + AHEAD)

                @pl.when(at - first >= stages)
                def _():
                    plgpu.barrier_wait(consumed.at[stage])

                def fetch(source, name):
                    plgpu.copy_gmem_to_smem(
                        source.at[pool + page, pl.ds(part, TILE)],
                        memory[name].at[stage],
                        ready.at[stage],
                    )

                fetch(k, "k")
                fetch(position, "position")
                if has_bias:
                    fetch(bias, "bias")
                fetch(v, "v")
                return *ahead, later

            lax.fori_loop(low, high, tile_body, ahead)

        walk(row_body)

    def compute(block, first, first_row, walk, memory, barriers):
        ready, consumed, q_ready, q_consumed, _ = barriers
        of_slots = plgpu.Layout.WGMMA.reduce(1)
        of_queries = plgpu.Layout.WGMMA.reduce(0)

        def filled(value, size, layout=plgpu.Layout.WGMMA):
            return plgpu.layout_cast(jnp.full(size, value, jnp.float32), layout)

        def by_slot(x):
            return lax.broadcast_in_dim(x, (TILE, N), [0])

        def by_query(x, height=TILE):
            return lax.broadcast_in_dim(x, (height, N), [1])

        def row_body(row, begin, low, high):
            pool = lax.div(row, shape.R) * shape.pages
            plgpu.barrier_wait(q_ready)
            q_at = by_query(load(memory["q_at"], of_queries))

            def tile_body(at, carry):
                highest, total, *values = carry
                stage = lax.rem(at - first, stages)
                plgpu.barrier_wait(ready.at[stage])

                def product(ref):
                    queries = memory["q"].transpose((1, 0))
                    plgpu.wgmma(ref, memory["k"].at[stage], queries)
                    return ref[...]

                z = pl.run_scoped(product, plgpu.ACC((TILE, N), jnp.float32))
                if soft_cap is None:
                    z = z * (scale * LOG2E)
                else:  # tanh x = 1 - 2 / (1 + exp 2x)
                    grown = jnp.exp2(z * (2 * LOG2E * scale / soft_cap))
                    z = (soft_cap * LOG2E) - (2 * soft_cap * LOG2E) / (grown + 1.0)
                if has_bias:
                    more = load(memory["bias"].at[stage], of_slots)
                    z = z + by_slot(more * LOG2E)
                at_k = load(memory["position"].at[stage], of_slots)
                at_k = by_slot(jnp.where(at_k >= 0, at_k, NO_TOKEN))
                live = at_k <= q_at
                if window is not None:
                    live = live & (at_k > q_at - window)
                z = jnp.where(live, z, LOWEST)
                if has_logits:
                    page = pool + table[row, lax.div(at - begin, parts)]
                    slots = pl.ds(lax.rem(at - begin, parts) * TILE, TILE)
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    memory["logits"][...] = z * (1 / LOG2E)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(memory["logits"], logits[0].at[page, slots])
                higher = jnp.maximum(highest, z.max(axis=0))
                shrink = jnp.exp2(highest - higher)
                p = jnp.exp2(z - by_query(higher))
                total = total * by_query(shrink) + p
                memory["p"].transpose((1, 0))[...] = p.astype(dtype)
                plgpu.commit_smem()
                added = []
                for offset, value in zip(offsets, values, strict=True):

                    def add(ref, offset=offset):
                        part = memory["v"].at[stage, :, pl.ds(offset, columns)]
                        weights = memory["p"].transpose((1, 0))
                        plgpu.wgmma(ref, part.transpose((1, 0)), weights)

                    shrunk = value * by_query(shrink, columns)
                    added.append(pl.run_state(add)(plgpu.ACC.init(shrunk)))
                plgpu.barrier_arrive(consumed.at[stage])
                return higher, total, *added

            nothing = filled(0.0, (columns, N))
            highest, total, *values = lax.fori_loop(
                low,
                high,
                tile_body,
                (
                    filled(FLOOR, (N,), of_queries),
                    filled(0.0, (TILE, N)),
                    *[nothing] * len(offsets),
                ),
            )
            plgpu.barrier_arrive(q_consumed)
            total = total.sum(axis=0)
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            logsum = jnp.where(some, highest + jnp.log2(safe), LOWEST)
            memory["lse"][...] = by_query(logsum)
            for offset, value in zip(offsets, values, strict=True):
                if offset:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                memory["out"][...] = value / by_query(safe, columns)
                plgpu.commit_smem()
                there = out.at[row + block, pl.ds(offset, columns)]
                plgpu.copy_smem_to_gmem(memory["out"], there)
            often = memory["lse"].at[pl.ds(0, CHUNK // N)]
            plgpu.copy_smem_to_gmem(often, lse.at[row + block])

        walk(row_body)
        plgpu.wait_smem_to_gmem(0)

    swizzle = 128 if H % 64 == 0 else 64

    def tiled(shape, dtype, swizzle):
        wide = swizzle // jnp.dtype(dtype).itemsize
        how = plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(swizzle)
        return plgpu.SMEM(shape, dtype, transforms=how)

    memory = dict(
        start=plgpu.SMEM(start.shape, jnp.int32),
        q=tiled((N, H), dtype, swizzle),
        q_at=plgpu.SMEM((N,), jnp.int32),
        k=tiled((stages, TILE, H), dtype, swizzle),
        v=tiled((stages, TILE, H), dtype, swizzle),
        position=plgpu.SMEM((stages, TILE), jnp.int32),
        p=tiled((N, TILE), dtype, swizzle),
        out=plgpu.SMEM((columns, N), jnp.float32),
        lse=plgpu.SMEM((TILE, N), jnp.float32),
    )
    if has_bias:
        memory["bias"] = plgpu.SMEM((stages, TILE), jnp.float32)
    if has_logits:
        memory["logits"] = plgpu.SMEM((TILE, N), jnp.float32)
    barriers = (
        plgpu.Barrier(num_arrivals=4 if has_bias else 3, num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=2),
        plgpu.Barrier(),
        plgpu.Barrier(num_arrivals=start.shape[0] // COPY),
    )
    pl.run_scoped(body, memory, barriers, collective_axes="warpgroup")
