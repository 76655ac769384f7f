"""ragged_decode on Hopper through Pallas' Mosaic GPU backend.

The tiles of all rows (64 slots of a page each) stand in one list, row after row, and
every block of the grid takes an equal share of it, wherever rows begin and end: batch 1
fills the chip, and rows of different lengths balance. What a block does of one row is a
piece; a second kernel joins each row's pieces by log-sum-exp.

    tiles_r = ceil(length_r / 64),   start_r = sum_{r' < r} tiles_r'
    block c takes the tiles [c share, (c + 1) share),   share = ceil(tiles / blocks)
    the piece of row r and block c is piece r + c: (r, c) only ever grow along the list

In a block one warpgroup copies tiles to shared memory ahead of another, which computes:
z = q k^T (the T G queries are rows of one 64-row product), an online softmax in
registers, z v. Positions say what is live, so they are copied beside.
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

from pallas_kernels.layout import Entry

TILE = 64  # slots of a page that are read at one time, and the rows of a product
LANES = 128  # threads of a warpgroup
LOWEST = -1e30  # a finite stand-in for -inf, in units of log 2
FLOOR = LOWEST / 2  # a maximum is at least this, so that exp2(LOWEST - maximum) is 0
LOG2E = math.log2(math.e)
NO_TOKEN = jnp.iinfo(jnp.int32).max
MOST = 8  # pieces of a row that are read at one time


@dataclass(frozen=True)
class Sizes:
    """How the work is laid over the chip.

    blocks: of the grid; as many as the chip has multiprocessors. stages: tiles of keys
    and values in flight in each.
    """

    blocks: int = 132
    stages: int = 5


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
    padded = -(-queries // 8) * 8
    sizes = sizes or Sizes(stages=stages_of(H))
    plan = Plan.make(length.reshape(rows), sizes.blocks)
    pool = partial(jnp.reshape, shape=(B * J * pages, P))
    seen_from = jnp.repeat(q_position, G, axis=1)
    shape = Shape(rows, R, J * R, pages, P, table.shape[-1], padded, H)
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
            jax.ShapeDtypeStruct((pieces, padded, H), jnp.float32),
            jax.ShapeDtypeStruct((pieces, LANES), jnp.float32),
            *[jax.ShapeDtypeStruct((B * J * pages, padded, P), jnp.float32)]
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
        plan.start,
        plan.span,
        table.reshape(rows, -1),
        jnp.pad(q.reshape(rows, queries, H), ((0, 0), (0, padded - queries), (0, 0))),
        jnp.pad(seen_from, ((0, 0), (0, TILE - queries)), constant_values=-1),
        *(x.reshape(B * J * pages, P, H) for x in entry),
        pool(position),
        *(() if bias is None else (pool(bias.astype(jnp.float32)),)),
    )
    out, lse = join(read[0], read[1], plan, shape, queries, q.dtype, interpret)
    out = out.reshape(q.shape)
    lse = lse[:, :queries].reshape(B, J, R, T, G)
    if not return_logits:
        return out, lse, None
    logits = read[2][:, :queries].reshape(B, J, pages, T, G, P)
    return out, lse, logits


def check(q: Array, entry: Entry) -> None:
    """Says what this kernel cannot take, and what to use."""
    T, G, H = q.shape[3:]
    P, dtype = entry.k.shape[3], entry.k.dtype
    use = "Use implementation='xla'."
    if dtype not in (jnp.bfloat16, jnp.float16) or q.dtype != dtype:
        raise ValueError(
            f"The Mosaic GPU kernel takes queries and entries of one 16-bit dtype, not "
            f"{q.dtype} and {dtype}. {use}"
        )
    if H not in (64, 96, 128, 256):
        raise ValueError(f"head_dim {H} is not one of 64, 96, 128, 256. {use}")
    if P % TILE:
        raise ValueError(f"Pages of {P} slots are no multiple of {TILE}. {use}")
    if T * G > TILE:
        raise ValueError(f"T x G = {T} x {G} queries a kv head exceed {TILE}. {use}")


def takes(q: Array, entry: Entry) -> bool:
    """Whether `check` says nothing."""
    try:
        check(q, entry)
    except ValueError:
        return False
    return True


def stages_of(H: int) -> int:
    """Tiles in flight: what fits beside queries and results in 227 KB."""
    return {64: 10, 96: 6, 128: 5, 256: 2}[H]


@dataclass(frozen=True)
class Shape:
    """Static sizes that both kernels share."""

    rows: int
    R: int  # rows of a pool
    sequence: int  # rows of a sequence
    pages: int  # of a pool
    P: int
    M: int
    queries: int  # of a row, in multiples of 8
    H: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """Which tiles are whose: start [rows + 1]; span [blocks, 4] of each block.

    A span is (first tile, end of its tiles, first row, end of its rows).
    """

    start: Int[Array, " rows+1"]
    span: Int[Array, "blocks 4"]

    @staticmethod
    def make(length: Int[Array, " rows"], blocks: int) -> "Plan":
        rows = length.shape[0]
        tiles = -(-length // TILE)
        before = jnp.arange(rows)[None] < jnp.arange(rows + 1)[:, None]
        start = jnp.where(before, tiles[None], 0).sum(axis=1, dtype=jnp.int32)
        share = jnp.maximum(-(-start[-1] // blocks), 1)
        first = jnp.minimum(jnp.arange(blocks) * share, start[-1])
        end = jnp.minimum(first + share, start[-1])
        first_row = (start[None, 1:] <= first[:, None]).sum(axis=1, dtype=jnp.int32)
        end_row = (start[None, :-1] < end[:, None]).sum(axis=1, dtype=jnp.int32)
        span = jnp.stack([first, end, first_row, end_row], axis=1)
        return Plan(start, span.astype(jnp.int32))


def _read(
    start,
    span,
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
    """One block: its tiles, copied by one warpgroup and computed by the other."""
    bias, rest = (rest[0], rest[1:]) if has_bias else (None, rest)
    out, lse, *logits = rest
    H, tile = shape.H, (TILE, shape.H)
    dtype = k.dtype
    swizzle = 128 if H % 64 == 0 else 64
    tiled = (
        plgpu.TilingTransform((8, swizzle // 2)),
        plgpu.SwizzleTransform(swizzle),
    )
    wide = plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128)
    columns = min(H, LANES)  # of values that one product gives
    rows = shape.rows

    def body(scoped, barriers):
        thread = lax.axis_index("warpgroup")
        block = lax.axis_index("block")
        first, end, first_row, end_row = (span[block, i] for i in range(4))
        args = block, first, end, first_row, end_row, scoped, barriers
        pl.when(thread == 0)(lambda: compute(*args))
        pl.when(thread == 1)(lambda: copy(*args))

    def copy(block, first, end, first_row, end_row, scoped, barriers):
        ready, consumed, q_ready, q_consumed = barriers

        def row_body(row, bounds):
            begin, until = bounds
            following = start[jnp.minimum(row + 2, rows)]

            @pl.when(row > first_row)
            def _():
                plgpu.barrier_wait(q_consumed)

            plgpu.copy_gmem_to_smem(
                q.at[row], scoped["q"].at[pl.ds(0, shape.queries)], q_ready
            )
            plgpu.copy_gmem_to_smem(
                seen_from.at[lax.div(row, shape.sequence)], scoped["q_at"], q_ready
            )
            pool = lax.div(row, shape.R) * shape.pages
            parts = shape.P // TILE

            def tile_body(at, _):
                page = pool + table[row, lax.div(at - begin, parts)]
                part = lax.rem(at - begin, parts) * TILE
                stage = lax.rem(at - first, stages)

                @pl.when(at - first >= stages)
                def _():
                    plgpu.barrier_wait(consumed.at[stage])

                def fetch(source, name):
                    plgpu.copy_gmem_to_smem(
                        source.at[page, pl.ds(part, TILE)],
                        scoped[name].at[stage],
                        ready.at[stage],
                    )

                fetch(k, "k")
                fetch(v, "v")
                fetch(position, "position")
                if has_bias:
                    fetch(bias, "bias")
                return _

            lax.fori_loop(
                jnp.maximum(begin, first), jnp.minimum(until, end), tile_body, None
            )
            return until, following

        lax.fori_loop(first_row, end_row, row_body, bounds_of(first_row))

    def bounds_of(row):
        """Where a row's tiles begin and end; read a row ahead of their use."""
        row = jnp.minimum(row, rows - 1)
        return start[row], start[row + 1]

    def compute(block, first, end, first_row, end_row, scoped, barriers):
        ready, consumed, q_ready, q_consumed = barriers
        of_queries = plgpu.Layout.WGMMA.reduce(1)
        of_slots = plgpu.Layout.WGMMA.reduce(0)

        def row_body(row, bounds):
            begin, until = bounds
            following = start[jnp.minimum(row + 2, rows)]
            plgpu.barrier_wait(q_ready)
            queries = plgpu.load(scoped["q"], layout=plgpu.Layout.WGMMA)
            q_at = plgpu.load(scoped["q_at"], layout=of_queries)
            plgpu.barrier_arrive(q_consumed)

            def tile_body(at, carry):
                highest, total, *values = carry
                stage = lax.rem(at - first, stages)
                plgpu.barrier_wait(ready.at[stage])

                def product(z_ref):
                    keys = scoped["k"].at[stage].transpose((1, 0))
                    plgpu.wgmma(z_ref, queries, keys)
                    return z_ref[...]

                z = pl.run_scoped(product, plgpu.ACC((TILE, TILE), jnp.float32))
                if soft_cap is None:
                    z = z * (scale * LOG2E)
                else:  # tanh x = 1 - 2 / (1 + exp 2x)
                    grown = jnp.exp2(z * (2 * LOG2E * scale / soft_cap))
                    z = (soft_cap * LOG2E) - (2 * soft_cap * LOG2E) / (grown + 1.0)
                if has_bias:
                    more = plgpu.load(scoped["bias"].at[stage], layout=of_slots)
                    z = z + lax.broadcast_in_dim(more * LOG2E, z.shape, [1])
                at_k = plgpu.load(scoped["position"].at[stage], layout=of_slots)
                at_k = jnp.where(at_k >= 0, at_k, NO_TOKEN)
                at_k = lax.broadcast_in_dim(at_k, z.shape, [1])
                at_q = lax.broadcast_in_dim(q_at, z.shape, [0])
                live = at_k <= at_q
                if window is not None:
                    live = live & (at_k > at_q - window)
                z = jnp.where(live, z, LOWEST)
                if has_logits:
                    page = table[row, lax.div(at - begin, shape.P // TILE)]
                    page = page + lax.div(row, shape.R) * shape.pages
                    part = lax.rem(at - begin, shape.P // TILE) * TILE
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    scoped["logits"][...] = z * (1 / LOG2E)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        scoped["logits"].at[pl.ds(0, shape.queries)],
                        logits[0].at[page, :, pl.ds(part, TILE)],
                    )
                higher = jnp.maximum(highest, z.max(axis=1))
                shrink = jnp.exp2(highest - higher)
                p = jnp.exp2(z - lax.broadcast_in_dim(higher, z.shape, [0]))
                total = total * shrink + p.sum(axis=1)
                shrink = lax.broadcast_in_dim(shrink, (TILE, columns), [0])
                p = p.astype(dtype)
                added = []
                for i, value in enumerate(values):

                    def add(ref, i=i):
                        of = pl.ds(i * columns, columns)
                        plgpu.wgmma(ref, p, scoped["v"].at[stage, :, of])

                    added.append(pl.run_state(add)(plgpu.ACC.init(value * shrink)))
                plgpu.barrier_arrive(consumed.at[stage])
                return higher, total, *added

            def filled(value, size, layout):
                return plgpu.layout_cast(jnp.full(size, value, jnp.float32), layout)

            nothing = filled(0.0, (TILE, columns), plgpu.Layout.WGMMA)
            highest, total, *values = lax.fori_loop(
                jnp.maximum(begin, first),
                jnp.minimum(until, end),
                tile_body,
                (
                    filled(FLOOR, (TILE,), of_queries),
                    filled(0.0, (TILE,), of_queries),
                    *[nothing] * (H // columns),
                ),
            )
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            piece = row + block
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            logsum = jnp.where(some, highest + jnp.log(safe) * LOG2E, LOWEST)
            scoped["lse"][...] = logsum
            for i, value in enumerate(values):
                if i:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                scoped["out"][...] = value / lax.broadcast_in_dim(
                    safe, value.shape, [0]
                )
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(
                    scoped["out"].at[pl.ds(0, shape.queries)],
                    out.at[piece, :, pl.ds(i * columns, columns)],
                )
            plgpu.copy_smem_to_gmem(scoped["lse"], lse.at[piece, pl.ds(0, TILE)])
            return until, following

        lax.fori_loop(first_row, end_row, row_body, bounds_of(first_row))
        plgpu.wait_smem_to_gmem(0)

    memory = dict(
        q=plgpu.SMEM(tile, dtype, transforms=tiled),
        q_at=plgpu.SMEM((TILE,), jnp.int32),
        k=plgpu.SMEM((stages, *tile), dtype, transforms=tiled),
        v=plgpu.SMEM((stages, *tile), dtype, transforms=tiled),
        position=plgpu.SMEM((stages, TILE), jnp.int32),
        out=plgpu.SMEM((TILE, columns), jnp.float32, transforms=wide),
        lse=plgpu.SMEM((TILE,), jnp.float32),
    )
    if has_bias:
        memory["bias"] = plgpu.SMEM((stages, TILE), jnp.float32)
    if has_logits:
        memory["logits"] = plgpu.SMEM((TILE, TILE), jnp.float32, transforms=wide)
    barriers = (
        plgpu.Barrier(num_arrivals=4 if has_bias else 3, num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=2),
        plgpu.Barrier(),
    )
    pl.run_scoped(body, memory, barriers, collective_axes="warpgroup")


def join(pieces, lse, plan: Plan, shape: Shape, queries: int, dtype, interpret=None):
    """Each row's pieces by log-sum-exp: out [rows, queries, H], lse [rows, 128].

    lse_r = log sum_i exp(lse_i), out_r = sum_i exp(lse_i - lse_r) out_i. One warpgroup
    for `chunk` numbers of a row, which are those of one or several whole queries.
    """
    H, rows = shape.H, shape.rows
    chunk = math.lcm(H, LANES)
    together = chunk // H  # queries of a chunk
    chunks = -(-queries // together)
    usual = -(-plan.span.shape[0] // rows) + 1  # pieces of a row, where rows are alike
    at_once = min(MOST, 1 << (usual - 1).bit_length())
    vector = plgpu.Layout.WG_STRIDED((chunk,), vec_size=2 if chunk == 256 else 1)
    lanes = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)

    def body(start, span, pieces, lse, out, lse_out):
        row, part = lax.axis_index("row"), lax.axis_index("chunk")
        share = jnp.maximum(span[0, 1] - span[0, 0], 1)
        begin, end = start[row], start[row + 1]
        some = end > begin
        first = row + lax.div(begin, share)
        last = row + lax.div(jnp.maximum(end - 1, begin), share)
        count = jnp.where(some, last - first + 1, 0)
        index = plgpu.broadcasted_iota(jnp.int32, (chunk,), 0, layout=vector)

        def spread(scalars):
            """Each query's number at all of its places in a chunk."""
            x = jnp.full((chunk,), 0.0, jnp.float32) + scalars[0]
            x = plgpu.layout_cast(x, vector)
            for i, scalar in enumerate(scalars[1:], 1):
                x = jnp.where(index >= i * H, scalar, x)
            return x

        def step(i, carry):
            highest, total, value = carry
            found = []
            for n in range(at_once):
                at = i * at_once + n
                piece = jnp.minimum(first + at, last)
                weights = tuple(
                    jnp.where(at < count, lse[piece, part * together + m], LOWEST)
                    for m in range(together)
                )
                found.append(
                    (weights, plgpu.load(pieces.at[piece, part], layout=vector))
                )
            new = []
            for m in range(together):
                high = highest[m]
                for weights, _ in found:
                    high = jnp.maximum(high, weights[m])
                new.append(high)
            shrink = tuple(jnp.exp2(a - b) for a, b in zip(highest, new, strict=True))
            value = value * spread(shrink)
            total = tuple(a * b for a, b in zip(total, shrink, strict=True))
            for weights, x in found:
                weighed = tuple(
                    jnp.exp2(a - b) for a, b in zip(weights, new, strict=True)
                )
                value = value + x * spread(weighed)
                total = tuple(a + b for a, b in zip(total, weighed, strict=True))
            return tuple(new), total, value

        zero = jnp.float32(0.0)
        nothing = plgpu.layout_cast(jnp.full((chunk,), 0.0, jnp.float32), vector)
        _, total, value = lax.fori_loop(
            0,
            lax.div(count + at_once - 1, at_once),
            step,
            ((zero + FLOOR,) * together, (zero,) * together, nothing),
        )
        safe = tuple(jnp.where(x > 0, x, 1.0) for x in total)
        out[row, part] = (value / spread(safe)).astype(dtype)

        @pl.when(part == 0)
        def _():
            def higher(i, x):
                return jnp.maximum(x, plgpu.load(lse.at[first + i], layout=lanes))

            def add(i, x):
                piece = plgpu.load(lse.at[first + i], layout=lanes)
                return x + jnp.exp2(piece - highest)

            def filled(x):
                return plgpu.layout_cast(jnp.full((LANES,), x, jnp.float32), lanes)

            highest = lax.fori_loop(0, count, higher, filled(FLOOR))
            total = lax.fori_loop(0, count, add, filled(0.0))
            found = (highest + jnp.log(jnp.where(total > 0, total, 1.0)) * LOG2E) * (
                1 / LOG2E
            )
            lse_out[row] = jnp.where(total > 0, found, -jnp.inf)

    kernel = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((rows, chunks, chunk), dtype),
            jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
        ],
        grid=(rows, chunks),
        grid_names=("row", "chunk"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    pieces = pieces.reshape(len(pieces), shape.queries // together, chunk)
    out, lse_out = kernel(plan.start, plan.span, pieces, lse)
    return out.reshape(rows, chunks * together, H)[:, :queries], lse_out
