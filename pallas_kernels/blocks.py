"""Blocks of an axis, for loops that hold one at a time, or as many as fit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.dispatch import platform

TOGETHER = 2**28  # bytes of one block of fp32 logits, over the rows that go together
LATEST = jnp.iinfo(jnp.int32).max


def blocks(x: Array, axis: int, size: int, fill: int | float) -> Array:
    """[X, .., n, ..]: `x` cut along `axis`, its last block filled up with `fill`.

    As few blocks as `size` allows, n at most `size`, and as even as multiples of
    `size` / 32 can be: 2064 make nine blocks of 232, and not eight of 256 and a rest.
    """
    step = max(1, size // 32)
    count = -(-x.shape[axis] // size)
    size = min(-(-x.shape[axis] // (count * step)) * step, x.shape[axis])
    short = [(0, 0)] * x.ndim
    short[axis] = (0, -x.shape[axis] % size)
    x = jnp.pad(x, short, constant_values=fill)
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def any_live(
    q_position: Int[Array, " T"], k_position: Int[Array, "..."]
) -> Bool[Array, ""]:
    """Whether any query of a block sees any key of one; -1 is no query or no key."""
    return jnp.where(k_position >= 0, k_position, LATEST).min() <= q_position.max()


def map_rows(one, rows, logits: int):
    """`one` of every row of the arrays, several at a time where `logits` of each fit.

    logits: fp32 numbers of a row that exist at one time. On a CPU rows go one by one,
    so that a block stays in its cache.
    """
    if platform() == "cpu":
        return jax.lax.map(one, rows)
    several = max(1, TOGETHER // (4 * logits))
    return jax.lax.map(one, rows, batch_size=several)
