"""A share of the slots for the newest tokens, the others by score (H2O)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.parts import Select
from jaxkv.seen import Seen
from jaxkv.select.best_first import best_first


@dataclass(frozen=True)
class HeavyAndRecent(Select):
    """The newest floor(recent * c_h) tokens, then the best scores (arXiv 2306.14048).

    c_h is the head's budget. Ties go to the lower position. At a step the newest ones
    are spared, and the worst of the others goes.
    """

    recent: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent={self.recent} is not a fraction from 0 to 1.")

    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        held = jnp.where(protected | candidate, seen.position[:, None], -1)
        age = held.max(axis=-1, keepdims=True) - held
        recent = age < self._recent(slots)[..., None]
        return best_first(scores, protected, candidate, recent, most)

    def spared(
        self, position: Int[Array, "B J R C"], slots: Int[Array, "B J R"]
    ) -> Bool[Array, "B J R C"]:
        newest = position.max(axis=-1, keepdims=True)
        return position > newest - self._recent(slots)[..., None]

    def _recent(self, slots):
        share = jnp.floor(slots.astype(jnp.float32) * self.recent + 1e-4)
        return share.astype(jnp.int32)
