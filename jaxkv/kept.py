"""Kept: what a layer's heads are to hold, on its way from the prompt to the pages."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.models.config import DecoderConfig

TRAIL = "trail"
"""The row state of layers whose entries are made of earlier tokens, too: what the
sequence's next tokens need of those before them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """The first `length` slots of each head's `order`, and where they are found.

    order holds indices along S; a merge may have appended slots to S that were no
    tokens. slot_state travels with the slots; row_state belongs to the heads.
    """

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"] | None  # None where a value is part of its key
    position: Int[Array, "B S"]
    order: Int[Array, "B K O"]
    length: Int[Array, "B K"]
    slot_state: dict[str, Array] = field(default_factory=dict)  # [B, K, S]
    row_state: dict[str, Array] = field(default_factory=dict)  # [B, K, ...]


def empty_trail(
    layer: DecoderConfig, batch: int, rows: int, dtype: DTypeLike
) -> dict[str, Array]:
    """The row state of a decoder's only layer before any token; {} if it has none."""
    trail = layer.trail(0)
    return {TRAIL: jnp.zeros((batch, rows, *trail), dtype)} if trail else {}
