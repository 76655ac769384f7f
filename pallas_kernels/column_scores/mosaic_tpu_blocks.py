"""What both passes of column_scores on TPUs share: sizes, bounds, heads apart."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from pallas_kernels.column_scores.passes import fill

LANES, SUBLANES = 128, 8
LATEST = jnp.iinfo(jnp.int32).max


@dataclass(frozen=True)
class Sizes:
    """What a step of the grid holds on the chip, in multiples of 128.

    As many as `fitted` finds room for. rows: of one product, what goes through the
    matrix unit, 128 or a part of it; products are short, so that one's exponentials
    overlap the next one.
    """

    queries: int = 512  # of each head
    keys: int = 1024
    most: int = 2048  # keys, where queries are few
    rows: int = 64
    parts: int = 1  # of the keys, one a core
    vmem: int = 15 * 2**20  # bytes of a core
    spare: int = 2**21  # of them, for what the compiler keeps


@dataclass(frozen=True)
class How:
    """What is computed, and in which sizes; all static."""

    scale: float
    sizes: Sizes
    interpret: Any = False


@dataclass(frozen=True)
class Blocks:
    """The positions of queries or keys, by blocks of so many.

    at: [B, 1, X], filled up to whole blocks. low, high: of each block of each row; a
    block of queries sees some of a block of keys where low of these is at most high of
    those, and all of it where high is at most low.
    """

    at: Int[Array, "B 1 X"]
    low: Int[Array, " BI"]
    high: Int[Array, " BI"]
    number: int  # of a row
    real: int  # those that the array itself has some of


def blocks_of(position: Int[Array, "B X"], size: int, parts: int, none: int) -> Blocks:
    """As many blocks of `size` as share out over `parts`; -1 becomes `none`."""
    B, X = position.shape
    at = fill(jnp.where(position < 0, none, position), 1, size * parts, none)
    by_block = at.reshape(B, -1, size)
    return Blocks(
        at[:, None],
        by_block.min(axis=-1).reshape(-1),
        by_block.max(axis=-1).reshape(-1),
        by_block.shape[1],
        pl.cdiv(X, size),
    )


def put_apart(tokens_ref, heads_ref) -> None:
    """[1, heads, tokens, H] of [1, tokens, heads, H].

    Of a whole block of 8 heads Mosaic makes a third less bundles (a cycle each) than of
    its parts, on v4 two thirds less; of more heads it does not, and takes memory.
    """
    _, tokens, heads, _ = tokens_ref.shape
    if heads <= SUBLANES:
        heads_ref[...] = jnp.swapaxes(tokens_ref[...], 1, 2)
        return

    def turn(i, _):
        here = pl.ds(pl.multiple_of(i * size, size), size)
        heads_ref[:, :, here] = jnp.swapaxes(tokens_ref[:, here], 1, 2)
        return _

    size = 32
    jax.lax.fori_loop(0, tokens // size, turn, None)


def when_live(live, whole, fetch, mask, add):
    """fetch(), then add(False) where a block is seen whole, or mask() and add(True)."""

    @pl.when(live)
    def _():
        fetch()

    @pl.when(whole)
    def _():
        add(False)

    @pl.when(live & ~whole)
    def _():
        mask()
        add(True)


def column(x):
    """[X, LANES] of [1, X]: a number a row, alike in all lanes."""
    return jnp.broadcast_to(x, (LANES, x.shape[1])).T


def wide(x, lanes: int):
    """An array that is alike in all its LANES lanes, in so many lanes."""
    return jnp.concatenate([x] * (lanes // LANES), axis=1)


def product(a, b):
    """a b^T in fp32, with all digits of fp32 operands."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (1,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def by_sublane(x):
    """[X / 8, 8, lanes] of [X, lanes]: what is reduced over the first stays apart."""
    return x.reshape(-1, SUBLANES, x.shape[1])


def parameters(how: How):
    """Of both kernels: one core a part."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
        vmem_limit_bytes=how.sizes.vmem,
    )
