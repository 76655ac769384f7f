"""Small keys draw attention: the negative L2 norm of the key (arXiv 2406.11430)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.method import Score
from jaxkv.seen import Seen


@dataclass(frozen=True)
class KeyNorm(Score):
    """s_j = -||k_j||_2, in fp32."""

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        k = seen.k.astype(jnp.float32)
        return -jnp.linalg.norm(k, axis=-1).swapaxes(1, 2)
