"""The same number of slots for every head."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.method import Budget


@dataclass(frozen=True)
class Uniform(Budget):
    """c_h = slots."""

    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, "B S"],
        candidate: Bool[Array, "B S"],
        slots: Int[Array, " B"],
    ) -> Int[Array, "B J R"]:
        B, J, R, _ = scores.shape
        return jnp.broadcast_to(slots[:, None, None], (B, J, R))
