"""Rotary position embedding, half-split layout (Su et al. 2021, arXiv 2104.09864)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B T heads H"],
    position: Int[Array, "B T"],
    inverse_frequencies: Float[Array | np.ndarray, " half"],
) -> Float[Array, "B T heads H"]:
    """Rotates pair (i, i + half) by position * inverse_frequencies[i].

    The pairs are each head's last 2 * half numbers; those before them stay.
    Angles and the rotation are fp32; the result has x's dtype. A rotation by p and then
    by d is a rotation by p + d, so a stored key moves by a delta.
    """
    angle_BTH = (
        position[..., None].astype(jnp.float32) * inverse_frequencies[None, None]
    )
    cos = jnp.cos(angle_BTH)[:, :, None, :]
    sin = jnp.sin(angle_BTH)[:, :, None, :]
    still, first, second = rotary_parts(x, inverse_frequencies.shape[0])
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
    return jnp.concatenate([still, turned], axis=-1) if still.shape[-1] else turned


def turn(
    k: Float[Array, "B S K H"],
    delta: Int[Array, "B K S"],
    inverse_frequencies: Float[Array, " half"],
) -> Float[Array, "B S K H"]:
    """Keys rotated further by delta positions, each head by its own."""
    over_heads = jax.vmap(
        lambda k_BSH, delta_BS: rotate(
            k_BSH[:, :, None], delta_BS, inverse_frequencies
        )[:, :, 0],
        in_axes=(2, 1),
        out_axes=2,
    )
    return over_heads(k, delta)


def rotary_parts(
    x: Float[Array, "*A H"], half: int
) -> tuple[Float[Array, "*A still"], Float[Array, "*A half"], Float[Array, "*A half"]]:
    """What is not rotated, and the first and the second numbers of the pairs."""
    H = x.shape[-1]
    still, first, second = jnp.split(x, [H - 2 * half, H - half], axis=-1)
    return still, first, second
