"""Small keys draw attention: the negative L2 norm of the key (arXiv 2406.11430)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.models.sizes import Sizes
from jaxkv.parts import Score
from jaxkv.seen import Seen

BITS = 14  # of the norm's mantissa: a relative error of 3e-5 at most


@dataclass(frozen=True)
class KeyNorm(Score):
    """s_j = -||k_j||_2, in fp32, rounded to BITS bits.

    In the first layer a token that comes twice has the same key twice, up to a rotation
    and its rounding. Unrounded, that noise would choose between them, and a row of a
    batch would keep others than its single run. Rounded they tie: the lower position
    stays.
    """

    def against(self, sizes: Sizes) -> str | None:
        looks = "ranks tokens by the length of their keys, and "
        if sizes.equal_keys:
            return looks + "a layer scales all keys of a head to one length"
        if not sizes.by_head:
            return looks + "a latent is normed: its length says nothing"
        return super().against(sizes)

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        norm_BSK = jnp.linalg.norm(seen.keys.astype(jnp.float32), axis=-1)
        return -jax.lax.reduce_precision(norm_BSK, 8, BITS).swapaxes(1, 2)
