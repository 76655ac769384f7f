"""Rotary position embedding, half-split layout (Su et al. 2021, arXiv 2104.09864)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B T heads H"],
    position: Int[Array, "B T"],
    inverse_frequencies: Float[Array | np.ndarray, " half"],
) -> Float[Array, "B T heads H"]:
    """Rotates pair (i, i + H/2) of each head by position * inverse_frequencies[i].

    Angles and the rotation are fp32; the result has x's dtype. A rotation by p and then
    by d is a rotation by p + d, so a stored key moves by a delta.
    """
    angle_BTH = (
        position[..., None].astype(jnp.float32) * inverse_frequencies[None, None]
    )
    cos = jnp.cos(angle_BTH)[:, :, None, :]
    sin = jnp.sin(angle_BTH)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return turned.astype(x.dtype)
