"""The second kernel of ragged_decode on Hopper: each row's pieces into one.

A piece is what one block of the grid did of one row: out over the tiles that it read,
and their lse, in units of log 2.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import FLOOR, LOG2E, LOWEST, load

LANES = 128  # threads of a warpgroup
CHUNK = 256  # numbers of a row that one warpgroup joins
MOST = 8  # pieces of a row that are read at one time


@dataclass(frozen=True)
class Shape:
    """Static sizes that both kernels share."""

    rows: int
    R: int  # rows of a pool
    sequence: int  # rows of a sequence
    pages: int  # of a pool
    P: int
    M: int
    queries: int  # of a row, filled up to a power of two
    H: int
    blocks: int


def share_of(tiles, blocks: int):
    """Tiles of a block."""
    return jnp.maximum(lax.div(tiles + blocks - 1, blocks), 1)


def join(pieces, lse, start, shape: Shape, dtype, interpret=None):
    """Each row's pieces by log-sum-exp: out [rows, H, queries] and lse [rows, queries].

    lse_r = log sum_i exp(lse_i), out_r = sum_i exp(lse_i - lse_r) out_i. One warpgroup
    for CHUNK numbers of a row. A piece's lse stands CHUNK / queries times one after
    another, so that every number meets its own query's.
    """
    H, N, rows = shape.H, shape.queries, shape.rows
    chunks = H * N // CHUNK
    usual = -(-shape.blocks // rows) + 1  # pieces of a row, where rows are alike
    at_once = min(MOST, 1 << (usual - 1).bit_length())
    vector = plgpu.Layout.WG_STRIDED((CHUNK,), vec_size=CHUNK // LANES)

    def body(start, pieces, lse, out, lse_out):
        row, part = lax.axis_index("row"), lax.axis_index("chunk")
        share = share_of(start[rows], shape.blocks)
        begin, end = start[row], start[row + 1]
        first = row + lax.div(begin, share)
        last = row + lax.div(jnp.maximum(end - 1, begin), share)
        count = jnp.where(end > begin, last - first + 1, 0)

        def filled(x):
            return plgpu.layout_cast(jnp.full((CHUNK,), x, jnp.float32), vector)

        def step(i, carry):
            highest, total, value = carry
            found = []
            for n in range(at_once):
                at = i * at_once + n
                piece = jnp.minimum(first + at, last)
                none = lax.broadcast(jnp.where(at < count, 0.0, LOWEST), (CHUNK,))
                weight = load(lse.at[piece], vector) + none
                found.append((weight, load(pieces.at[piece, part], vector)))
            higher = highest
            for weight, _ in found:
                higher = jnp.maximum(higher, weight)
            shrink = jnp.exp2(highest - higher)
            total, value = total * shrink, value * shrink
            for weight, x in found:
                weight = jnp.exp2(weight - higher)
                total, value = total + weight, value + x * weight
            return higher, total, value

        times = lax.div(count + at_once - 1, at_once)
        nothing = filled(FLOOR), filled(0.0), filled(0.0)
        highest, total, value = lax.fori_loop(0, times, step, nothing)
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        out[row, part] = (value / safe).astype(dtype)

        @pl.when(part == 0)
        def _():
            found = (highest + jnp.log2(safe)) * (1 / LOG2E)
            lse_out[row] = jnp.where(some, found, -jnp.inf)

    kernel = plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((rows, chunks, CHUNK), dtype),
            jax.ShapeDtypeStruct((rows, CHUNK), jnp.float32),
        ],
        grid=(rows, chunks),
        grid_names=("row", "chunk"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    pieces = pieces.reshape(-1, chunks, CHUNK)
    out, lse = kernel(start, pieces, lse.reshape(-1, CHUNK))
    return out.reshape(rows, H, N), lse[:, :N]
