"""latent_decode on Hopper through Pallas' Mosaic GPU backend.

Few queries of a row are columns of ragged_decode's kernel, and cost little there. Many
are rows, 64 a block: the tiles of all rows stand in one list that blocks share equally,
as in ragged_decode, whose second kernel joins what came of them, and
`mosaic_gpu_read.py` is what a block does.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.latent_decode.mosaic_gpu_read import CLUSTER, QUERIES, Read
from pallas_kernels.layout import Latent
from pallas_kernels.ragged_decode.mosaic_gpu import (
    SHARED,
    Sizes,
    columns_of,
    positions,
    slots_by_queries,
    starts,
)
from pallas_kernels.ragged_decode.mosaic_gpu_join import LANES, Shape, join, width_of
from pallas_kernels.ragged_decode.mosaic_gpu_walk import TILE

ALIGNED = 1024  # bytes: where every array in shared memory begins
BARRIERS = 1024  # bytes, at most
PARTS = 8  # of 64 queries, of a row, at most
WIDEST, VALUES = 576, 512  # numbers of a latent, and of a value, at most
MOST_STAGES = 8
FEW = 32  # queries of a row that are columns of a product, at most


def latent_decode(
    q: Float[Array, "B J R T G H"],
    entry: Latent,
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    value_dim: int,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    sizes: Sizes | None = None,
    interpret=None,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """As `reference.latent_decode`, of 16-bit entries, and logits by page.

    Logits of slots that no row reads are unspecified, those that are not live about
    -1e30.

    Raises:
      ValueError: the dtype, the numbers of a latent or of its value, the page size or
        the number of queries is not one that this kernel takes.
    """
    check(q, entry, value_dim)
    B, J, R, T, G, H = q.shape
    pages, P = position.shape[2:]
    rows, queries = B * J * R, T * G
    start = starts(length.reshape(rows))
    columns = columns_of(queries)
    turns, stages = held(H, columns, len(start))
    if columns <= FEW and stages > 1:
        return slots_by_queries(
            q,
            (entry.row,),
            position,
            q_position,
            table,
            length,
            value_dim=value_dim,
            together=1,
            turns=turns,
            sizes=sizes or Sizes(stages=stages),
            scale=scale,
            soft_cap=soft_cap,
            window=window,
            bias=bias,
            return_logits=return_logits,
            interpret=interpret,
        )
    parts = -(-queries // QUERIES)
    padded = parts * QUERIES
    sizes = sizes or Sizes(stages=stages_of(H))
    shares = max(1, sizes.blocks // parts)
    shape = Shape(
        rows=rows,
        R=R,
        sequence=J * R,
        pages=pages,
        P=P,
        M=table.shape[-1],
        queries=padded,
        together=1,
        H=value_dim,
        blocks=shares,
    )
    fill = padded - queries
    pieces = rows + shares - 1
    by_page = (B * J * pages, P)
    read = Read(
        shape=shape,
        numbers=H,
        parts=parts,
        one_token=T == 1,
        dtype=q.dtype,
        stages=sizes.stages,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        has_bias=bias is not None,
        has_logits=return_logits,
    )
    clusters = (read.cluster,) if read.cluster > 1 else ()
    kernel = plgpu.kernel(
        read,
        out_type=[
            jax.ShapeDtypeStruct((pieces, padded, width_of(value_dim)), jnp.float32),
            jax.ShapeDtypeStruct((pieces, padded), jnp.float32),
            *[jax.ShapeDtypeStruct((B * J * pages, padded, P), jnp.float32)]
            * return_logits,
        ],
        grid=(shares * parts // read.cluster,),
        grid_names=("block",),
        cluster=clusters,
        cluster_names=(CLUSTER,) * len(clusters),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, reduction_scratch_bytes=0
        ),
        interpret=interpret,
    )
    found = kernel(
        start,
        table.reshape(rows, -1),
        jnp.pad(q.reshape(rows, queries, H), ((0, 0), (0, fill), (0, 0))),
        positions(q_position, G, 1, fill),
        entry.row.reshape(*by_page, H),
        position.reshape(by_page),
        *(() if bias is None else (bias.astype(jnp.float32).reshape(by_page),)),
    )
    out, lse = join(found[0], found[1], start, shape, queries, q.dtype, interpret)
    out = out.reshape(*q.shape[:-1], value_dim)
    lse = lse.reshape(q.shape[:-1])
    if not return_logits:
        return out, lse, None
    logits = found[2][:, :queries]
    return out, lse, logits.reshape(B, J, pages, T, G, P)


def stages_of(numbers: int) -> int:
    """Tiles that shared memory holds beside queries, weights and what is small."""
    tile, weights = 2 * TILE * numbers, 2 * QUERIES * TILE

    def used(stages: int) -> int:
        small = -(-4 * TILE * (stages + 1) // ALIGNED) * ALIGNED
        return tile * (stages + 1) + weights + 2 * small + BARRIERS

    return max(n for n in range(1, MOST_STAGES + 1) if used(n) <= SHARED)


def held(numbers: int, columns: int, begins: int) -> tuple[int, int]:
    """Rows whose queries, and tiles, that shared memory holds beside what is small.

    begins: numbers in the list of where rows begin.
    """
    tile, q = 2 * TILE * numbers, 2 * columns * numbers
    # Weights, a part of what comes out, logits; and lists.
    other = columns * (2 * TILE + 4 * LANES + 4 * TILE) + 4 * begins + 16 * ALIGNED
    turns = 2 if 2 * (q + tile) + other <= SHARED else 1
    return turns, min(MOST_STAGES, (SHARED - turns * q - other) // tile)


def check(q: Array, entry: Latent, value_dim: int) -> None:
    """Says what this kernel cannot take, and what to use."""
    T, G, H = q.shape[3:]
    P, dtype = entry.row.shape[3], entry.row.dtype
    use = "Use xla.latent_decode."
    if dtype not in (jnp.bfloat16, jnp.float16) or q.dtype != dtype:
        raise ValueError(
            f"The Mosaic GPU kernel takes queries and latents of one 16-bit dtype, not "
            f"{q.dtype} and {dtype}. {use}"
        )
    if H % 32 or H > WIDEST or entry.row.shape[-1] != H:
        raise ValueError(
            f"{H} numbers of a latent are no multiple of 32 up to {WIDEST}. {use}"
        )
    if value_dim % 64 or value_dim > VALUES:
        raise ValueError(
            f"value_dim {value_dim} is no multiple of 64 up to {VALUES}. {use}"
        )
    if P % TILE:
        raise ValueError(f"Pages of {P} slots are no multiple of {TILE}. {use}")
    if T * G > PARTS * QUERIES:
        raise ValueError(
            f"T x G = {T} x {G} queries a row exceed {PARTS * QUERIES}. {use}"
        )
