"""What the kernels for Hopper share: memory that products read, and what is stored."""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

ALIGNED = 64  # numbers of 16 bits: where a copy may begin in shared memory
COPIED = 256  # numbers of an axis that one copy takes, at most


def load(ref, layout):
    """What stands in a part of memory, spread over registers in such a way."""
    return plgpu.layout_cast(ref[...], layout)


def tiled(shape: tuple[int, ...], dtype: DTypeLike, head_dim: int):
    """Shared memory that products read; both operands of one have the same swizzle."""
    swizzle = 128 if head_dim % 64 == 0 else 64
    wide = swizzle // jnp.dtype(dtype).itemsize
    how = plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(shape, dtype, transforms=how)


def in_copies(numbers: int) -> list:
    """The parts of an axis that one copy takes each."""
    return [pl.ds(at, min(COPIED, numbers - at)) for at in range(0, numbers, COPIED)]


def check_entries(dtype: DTypeLike, head_dim: int, use: str) -> None:
    """Says which entries no kernel here stores, and what to use.

    Raises:
      ValueError: they are not of 16 bits, or no whole number of 16 bytes.
    """
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"The Mosaic GPU kernel stores 16-bit entries, not {dtype}. {use}"
        )
    if head_dim % 8:
        raise ValueError(
            f"head_dim {head_dim} is no multiple of 8, so that an entry is no whole "
            f"number of 16 bytes. {use}"
        )
