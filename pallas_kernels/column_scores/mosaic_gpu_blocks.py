"""What both passes of column_scores on Hopper share: sizes, bounds, warpgroups."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int

from pallas_kernels.column_scores.passes import fill

LATEST = jnp.iinfo(jnp.int32).max
WORKERS = 2  # warpgroups that compute
REGISTERS = dict(compute=232, copy=40)  # of a thread: 64512 of 65536 in all


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


def copyable(x, size: int):
    """`x` with the tokens of a tile, or a multiple of 8; a copy finds 0 behind them."""
    return fill(x, 1, size if x.shape[1] < size else 8)


def spans(position_BX, size: int):
    """Lowest and highest position of each block, and whether all are positions."""
    position = position_BX.reshape(position_BX.shape[0], -1, size)
    some = position >= 0
    lowest = jnp.where(some, position, LATEST).min(axis=-1)
    return lowest, position.max(axis=-1), some.all(axis=-1)


def bounds_of(live_BIJ, whole_BIJ, whole_first: bool) -> Int[Array, "B I 3"]:
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


def product(a, b):
    """a b^T in registers."""

    def run(ref):
        plgpu.wgmma(ref, a, b.transpose((1, 0)))
        return ref[...]

    shape = a.shape[-2], b.shape[-2]
    return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def launch(body, grid: int, out_type):
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


def roles(compute, copy):
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
