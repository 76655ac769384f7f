"""The second kernel of ragged_decode on Hopper: each row's pieces into one.

A piece is what one block of the grid did of one row: out over the tiles that it read,
and their lse, in units of log 2.
"""

from dataclasses import dataclass
from math import gcd

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import load
from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST

LANES = 128  # threads of a warpgroup, and numbers of a row that one of them joins
MOST = 32  # chunks of a row's pieces that are read at one time
CHUNKS = 4  # of a query, that one warpgroup joins at most


@dataclass(frozen=True)
class Shape:
    """Static sizes that both kernels share."""

    rows: int
    R: int  # rows of a pool
    sequence: int  # rows of a sequence
    pages: int  # of a pool
    P: int
    M: int
    queries: int  # of a row, those of rows beside it, or filled up to a power of two
    together: int  # rows whose queries are so held together
    H: int
    blocks: int


def share_of(tiles, blocks: int):
    """Tiles of a block."""
    return jnp.maximum(lax.div(tiles + blocks - 1, blocks), 1)


def width_of(H: int) -> int:
    """Numbers of a query in a piece: H, filled up where a chunk would be cut."""
    return H if LANES % H == 0 else -(-H // LANES) * LANES


def join(pieces, lse, start, shape: Shape, queries: int, dtype, interpret=None):
    """Each row's pieces by log-sum-exp: out [rows, queries, H], lse [rows, queries].

    lse_r = log sum_i exp(lse_i), out_r = sum_i exp(lse_i - lse_r) out_i. A chunk is
    LANES numbers, which are a part of a query, or one or two queries; a warpgroup joins
    one, or up to four of a query's.
    """
    rows, width = shape.rows, width_of(shape.H)
    each = max(1, LANES // width)  # queries of a chunk
    of_query = max(1, width // LANES)  # chunks of a query
    chunks = -(-queries // each) * of_query
    mine = gcd(of_query, CHUNKS)  # chunks of one warpgroup
    usual = -(-shape.blocks // rows) + 1  # pieces of a row, where rows are alike
    at_once = min(MOST // mine, 1 << (usual - 1).bit_length())
    each_mine = range(mine)
    vector = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)

    def body(start, pieces, lse, out, lse_out):
        row, chunk = lax.axis_index("row"), lax.axis_index("chunk") * mine
        share = share_of(start[rows], shape.blocks)
        begin, end = start[row], start[row + 1]
        first = row + lax.div(begin, share)
        last = row + lax.div(jnp.maximum(end - 1, begin), share)
        count = jnp.where(end > begin, last - first + 1, 0)
        beside = lax.rem(row, shape.together)  # rows whose queries come before
        query = lax.div(chunk, of_query) * each + beside * queries
        lane = plgpu.broadcasted_iota(jnp.int32, (LANES,), 0, layout=vector)

        def weight_of(piece, none):
            """Each number's own query's."""
            weight = lax.broadcast(lse[piece, query] + none, (LANES,))
            for i in range(1, each):
                other = lax.broadcast(lse[piece, query + i] + none, (LANES,))
                weight = jnp.where(lane >= i * width, other, weight)
            return plgpu.layout_cast(weight, vector)

        def filled(x):
            return plgpu.layout_cast(jnp.full((LANES,), x, jnp.float32), vector)

        def step(i, carry):
            highest, total, *values = carry
            found = []
            for n in range(at_once):
                at = i * at_once + n
                piece = jnp.minimum(first + at, last)
                weight = weight_of(piece, jnp.where(at < count, 0.0, LOWEST))
                own = [pieces.at[piece, chunk + m + beside * chunks] for m in each_mine]
                found.append((weight, [load(x, vector) for x in own]))
            higher = highest
            for weight, _ in found:
                higher = jnp.maximum(higher, weight)
            shrink = jnp.exp2(highest - higher)
            total, values = total * shrink, [value * shrink for value in values]
            for weight, own in found:
                weight = jnp.exp2(weight - higher)
                total = total + weight
                values = [v + x * weight for v, x in zip(values, own, strict=True)]
            return higher, total, *values

        times = lax.div(count + at_once - 1, at_once)
        nothing = filled(FLOOR), filled(0.0), *(filled(0.0) for _ in each_mine)
        highest, total, *values = lax.fori_loop(0, times, step, nothing)
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        for m, value in zip(each_mine, values, strict=True):
            out[row, chunk + m] = (value / safe).astype(dtype)

        @pl.when(lax.rem(chunk, of_query) == 0)
        def _():
            found = (highest + jnp.log2(safe)) * (1 / LOG2E)
            lse_out[row, lax.div(chunk, of_query)] = jnp.where(some, found, -jnp.inf)

    kernel = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((rows, chunks, LANES), dtype),
            jax.ShapeDtypeStruct((rows, chunks // of_query, LANES), jnp.float32),
        ],
        grid=(rows, chunks // mine),
        grid_names=("row", "chunk"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    out, lse = kernel(start, pieces.reshape(len(pieces), -1, LANES), lse)
    out = out.reshape(rows, -1, width)[:, :queries, : shape.H]
    lse = lse.reshape(rows, -1, min(width, LANES))[:, :queries, 0]
    return out, lse
