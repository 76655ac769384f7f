"""Keys unlike the others stay: KeyDiff (arXiv 2504.15364)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.models.sizes import Sizes
from jaxkv.parts import Score
from jaxkv.seen import Seen

BITS = 16  # of the cosine's mantissa: a relative error of 8e-6 at most


@dataclass(frozen=True)
class KeyDifference(Score):
    """s_j = -cos(k_j, mean_i k_i / ||k_i||), in fp32, rounded to BITS bits.

    The mean is over the tokens of the prompt that the head has, padding left out; keys
    are rotated. In a run of one token two keys that mirror each other about its middle
    have the same cosine, up to rounding. Rounded they tie, and the lower position
    stays.
    """

    def against(self, sizes: Sizes) -> str | None:
        if sizes.absorbed:
            return super().against(sizes)
        return "compares the directions of rotated keys, and those cached are not"

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        unit_BSKH = _unit(seen.keys.astype(jnp.float32))
        token = seen.by_head(seen.valid).swapaxes(1, 2)[..., None]
        total_B1KH = unit_BSKH.sum(axis=1, where=token, keepdims=True)
        # A product and a sum: a matrix product would be cut to TF32 on a GPU.
        cos_BSK = (unit_BSKH * _unit(total_B1KH)).sum(axis=-1)
        return -jax.lax.reduce_precision(cos_BSK, 8, BITS).swapaxes(1, 2)


def _unit(x: Float[Array, "B T K H"]) -> Float[Array, "B T K H"]:
    """x / ||x||, and 0 for 0."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, 1e-8)
