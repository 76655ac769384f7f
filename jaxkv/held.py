"""Held: what a layer's heads hold once new tokens have looked at it."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """Every head's slots in its own order, and the attention that they just received.

    C is the most slots that a head's table holds. Attention is the mean over a kv
    head's query heads; `received` sums it over the new tokens, `newest` is the last
    one's.
    """

    position: Int[Array, "B J R C"]  # -1 = empty
    received: Float[Array, "B J R C"]
    newest: Float[Array, "B J R C"]
    state: dict[str, Array]  # what the slots carry, [B, J, R, C] each
    slots: Int[Array, "B J R"]  # each head's budget
