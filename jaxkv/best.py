"""The best n of an axis, found without sorting it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


def best(
    scores: Float[Array, "*rows S"], count: Int[Array, "*rows"]
) -> Bool[Array, "*rows S"]:
    """Which are each row's `count` highest scores; ties go to the lower index.

    The lowest score that is among them is found bit by bit: 32 counts, each of them one
    look at the row.
    """
    key = _ordered(scores)

    def add_bit(i, lowest):
        more = lowest | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        enough = (key >= more[..., None]).sum(axis=-1) >= count
        return jnp.where(enough, more, lowest)

    nothing = jnp.zeros(count.shape, jnp.uint32)
    lowest = jax.lax.fori_loop(0, 32, add_bit, nothing)[..., None]
    above, equal = key > lowest, key == lowest
    left = count - above.sum(axis=-1)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= left[..., None]))


def _ordered(x: Float[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Whole numbers in the order of fp32 numbers; both zeros are equal."""
    x = jnp.where(x == 0, 0.0, x).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)
