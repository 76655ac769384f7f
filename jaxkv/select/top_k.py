"""The best scores stay."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.parts import Select
from jaxkv.seen import Seen
from jaxkv.select.best_first import best_first


@dataclass(frozen=True)
class TopK(Select):
    """Protected tokens, then candidates by score; ties go to the lower position."""

    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        return best_first(scores, protected, candidate, most=most)


@dataclass(frozen=True)
class InOrder(Select):
    """All tokens in order of position; scores are not looked at."""

    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        cannot = ~(protected | candidate)
        order = jnp.argsort(cannot, axis=-1, stable=True).astype(jnp.int32)
        return jnp.broadcast_to(order, scores.shape)[..., :most]


def rank_of(order: Int[Array, "B K O"], tokens: int) -> Int[Array, "B K S"]:
    """Where each of the tokens stands in an order; S where it does not."""
    B, K, O = order.shape
    b, k = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None]
    place = jax.lax.broadcasted_iota(jnp.int32, order.shape, 2)
    nowhere = jnp.full((B, K, tokens), tokens, jnp.int32)
    return nowhere.at[b, k, order].set(place)
