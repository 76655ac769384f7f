"""Newer tokens first, after a few sinks (StreamingLLM, arXiv 2309.17453)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkv.held import Held
from jaxkv.parts import Score
from jaxkv.seen import Seen


@dataclass(frozen=True)
class Recency(Score):
    """s_j = position_j; the first `sinks` positions are protected."""

    sinks: int = 4

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} is below 0; 0 protects no token.")

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        s_BS = seen.position.astype(jnp.float32)
        B, S = s_BS.shape
        return jnp.broadcast_to(s_BS[:, None], (B, seen.rows, S))

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """The attention sinks, by position."""
        return seen.valid & (seen.position < self.sinks)

    def again(self, held: Held):
        protected = (held.position >= 0) & (held.position < self.sinks)
        return held.position.astype(jnp.float32), protected, held.state

    def minimum(self, length: int) -> int:
        # And the newest token: without its slot, a rerun of it would cost a sink.
        return min(self.sinks + 1, length)
