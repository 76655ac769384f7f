"""The page: what a tile of P slots looks like in memory, known to no one else.

A page is one rank-2 tile [2P, H]: P keys, then P values. Apart they are slower on TPU, and
a rank-3 [2, P, H] cannot be read by Mosaic GPU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# 16 KB reads reach a GPU's memory speed; a TPU wants whole 128-lane rows of positions.
SLOTS_BY_PLATFORM = {"tpu": 128}
SLOTS = 64


def page_slots() -> int:
    """P, the slots in a page on the default backend."""
    return SLOTS_BY_PLATFORM.get(jax.default_backend(), SLOTS)


def split(entry: Float[Array, "*pool 2P H"]) -> tuple[Array, Array]:
    """Pages to keys [*pool, P, H] and values [*pool, P, H]."""
    slots = entry.shape[-2] // 2
    return entry[..., :slots, :], entry[..., slots:, :]


def join(
    k: Float[Array, "*pool P H"], v: Float[Array, "*pool P H"]
) -> Float[Array, "*pool 2P H"]:
    """Keys and values of whole pages to pages."""
    return jnp.concatenate([k, v], axis=-2)


def write(
    entry: Float[Array, "pages 2P H"],
    page: Array,
    slot: Array,
    k: Float[Array, "*n H"],
    v: Float[Array, "*n H"],
) -> Float[Array, "pages 2P H"]:
    """Writes entries at (page, slot); an index outside the pool is dropped."""
    slots = entry.shape[-2] // 2
    entry = entry.at[page, slot].set(k.astype(entry.dtype), mode="drop")
    return entry.at[page, slot + slots].set(v.astype(entry.dtype), mode="drop")
