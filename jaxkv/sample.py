"""The next token from logits: greedy, temperature, top-k, top-p."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Sample:
    """Greedy at temperature 0; else a draw from softmax(logits / temperature).

    top_k keeps the k best tokens (0: all); top_p then keeps the fewest best tokens
    whose probabilities reach p.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} is below 0.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is below 0; 0 keeps all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not above 0 and up to 1.")

    def __call__(self, logits: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        """One token a row; each row draws from its own key."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        z = logits.astype(jnp.float32) / self.temperature
        if 0 < self.top_k < z.shape[-1]:
            lowest = jax.lax.top_k(z, self.top_k)[0][:, -1:]
            z = jnp.where(z < lowest, -jnp.inf, z)
        if self.top_p < 1:
            z = jnp.where(z < _nucleus(z, self.top_p), -jnp.inf, z)
        return jax.vmap(jax.random.categorical)(keys, z).astype(jnp.int32)


def _nucleus(z: Float[Array, "B V"], top_p: float) -> Float[Array, "B 1"]:
    """The lowest logit among the fewest tokens that reach probability top_p."""
    best = jnp.sort(z, axis=-1, descending=True)
    p = jax.nn.softmax(best, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    return jnp.where(before < top_p, best, jnp.inf).min(axis=-1, keepdims=True)
