"""ragged_decode on Hopper through Pallas' Mosaic GPU backend.

The tiles of all rows (64 slots of a page each) stand in one list, row after row, and
every block of the grid takes an equal share of it, wherever rows begin and end: batch 1
fills the chip, and rows of different lengths balance. What a block does of one row is a
piece; a second kernel joins each row's pieces by log-sum-exp.

    tiles_r = ceil(length_r / 64),   start_r = sum_{r' < r} tiles_r'
    block c takes the tiles [c share, (c + 1) share),   share = ceil(tiles / blocks)
    the piece of row r and block c is piece r + c: (r, c) only ever grow along the list

`mosaic_gpu_read.py` is what a block does, `mosaic_gpu_walk.py` how it walks its share,
and `mosaic_gpu_join.py` the second kernel.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry
from pallas_kernels.ragged_decode.mosaic_gpu_join import LANES, Shape, join, width_of
from pallas_kernels.ragged_decode.mosaic_gpu_read import Read
from pallas_kernels.ragged_decode.mosaic_gpu_walk import COPY, TILE
from pallas_kernels.tuned import tuned

FEWEST = 8  # columns of a product
TURNS = 2  # rows whose queries are held
STAGES = {64: 6, 96: 4, 128: 3, 256: 2}  # by head_dim: about 100 KB in flight
SHARED = 227 * 1024  # bytes of memory that a block may have


@dataclass(frozen=True)
class Sizes:
    """How the work is laid over the chip.

    blocks: of the grid; as many as the chip has multiprocessors, or twice that. stages:
    tiles in flight in each.
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
    J, R, T, G, H = q.shape[1:]
    together = 1 if return_logits else rows_together(J * R, T * G, H)
    return slots_by_queries(
        q,
        (entry.k, entry.v),
        position,
        q_position,
        table,
        length,
        value_dim=H,
        together=together,
        turns=TURNS,
        sizes=sizes or tuned("ragged_decode", H, Sizes, stages=STAGES[H]),
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        bias=bias,
        return_logits=return_logits,
        interpret=interpret,
    )


def slots_by_queries(
    q: Float[Array, "B J R T G H"],
    entry: tuple[Float[Array, "B J pages P N"], ...],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    value_dim: int,
    together: int,
    turns: int,
    sizes: Sizes,
    scale: float,
    soft_cap: float | None,
    window: int | None,
    bias: Float[Array, "B J pages P"] | None,
    return_logits: bool,
    interpret,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Both kernels, over keys and values, or over latents alone.

    together: rows beside each other whose queries are columns of the same products.
    turns: rows whose queries a block holds at one time.
    """
    B, J, R, T, G, H = q.shape
    pages, P = position.shape[2:]
    rows, queries = B * J * R, T * G
    padded = columns_of(queries)
    start = starts(length.reshape(rows))
    pool = partial(jnp.reshape, shape=(B * J * pages, P))
    shape = Shape(
        rows=rows,
        R=R,
        sequence=J * R,
        pages=pages,
        P=P,
        M=table.shape[-1],
        queries=padded,
        together=together,
        H=value_dim,
        blocks=sizes.blocks,
    )
    fill = padded - together * queries
    pieces = rows + sizes.blocks - 1
    kernel = plgpu.kernel(
        Read(
            shape=shape,
            numbers=H,
            latent=len(entry) == 1,
            one_token=T == 1,
            dtype=q.dtype,
            stages=sizes.stages,
            turns=turns,
            scale=scale,
            soft_cap=soft_cap,
            window=window,
            has_bias=bias is not None,
            has_logits=return_logits,
        ),
        out_type=[
            jax.ShapeDtypeStruct((pieces, padded, width_of(value_dim)), jnp.float32),
            jax.ShapeDtypeStruct((pieces, padded), jnp.float32),
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
        jnp.pad(q.reshape(-1, together * queries, H), ((0, 0), (0, fill), (0, 0))),
        positions(q_position, G, together, fill),
        *(x.reshape(B * J * pages, P, -1) for x in entry),
        pool(position),
        *(() if bias is None else (pool(bias.astype(jnp.float32)),)),
    )
    out, lse = join(read[0], read[1], start, shape, queries, q.dtype, interpret)
    out = out.reshape(*q.shape[:-1], value_dim)
    lse = lse.reshape(q.shape[:-1])
    if not return_logits:
        return out, lse, None
    logits = read[2][..., :queries].swapaxes(1, 2)
    return out, lse, logits.reshape(B, J, pages, T, G, P)


def positions(
    q_position: Int[Array, "B T"], G: int, together: int, fill: int
) -> Int[Array, "B N"]:
    """Of the queries that a block holds of a row; one number where T is one."""
    if q_position.shape[1] == 1:
        return q_position
    of_queries = jnp.tile(jnp.repeat(q_position, G, axis=1), (1, together))
    return jnp.pad(of_queries, ((0, 0), (0, fill)), constant_values=-1)


def columns_of(queries: int) -> int:
    """Of a product: the queries, filled up to a power of two."""
    return max(FEWEST, 1 << (queries - 1).bit_length())


def rows_together(rows: int, queries: int, H: int) -> int:
    """How many of a sequence's rows fill a product's columns with their queries.

    Each then computes the others' too, which costs nothing, and none are filled up,
    which would be one more program. One where they do not come out even.
    """
    together = FEWEST // queries if FEWEST % queries == 0 else 1
    even = rows % together == 0 and queries * width_of(H) % LANES == 0
    return together if even else 1


def check(q: Array, entry: Entry) -> None:
    """Says what this kernel cannot take, and what to use."""
    T, G, H = q.shape[3:]
    P, dtype = entry.k.shape[3], entry.k.dtype
    use = "Use xla.ragged_decode."
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


def starts(length: Int[Array, " rows"]) -> Int[Array, " size"]:
    """Where each row's tiles begin in the list of all, and how many there are.

    [rows + 1], filled up with the number of tiles to what is copied at one time.
    """
    rows = length.shape[0]
    size = -(-(rows + 1) // COPY) * COPY
    before = jnp.arange(rows)[None] < jnp.arange(size)[:, None]
    tiles = -(-length // TILE)
    return jnp.where(before, tiles[None], 0).sum(axis=1, dtype=jnp.int32)
