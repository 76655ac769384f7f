"""Random scores: the floor that every method has to beat."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.parts import Score
from jaxkv.seen import Seen


@dataclass(frozen=True)
class Noise(Score):
    """s_j uniform in [0, 1), independent for each layer, head and token.

    The key is the sequence's own, so a row of a batch draws what its single run draws;
    a token's draw does not depend on how far the row is padded.
    """

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        def one_token(key, position):
            token_key = jax.random.fold_in(key, position)
            return jax.random.uniform(token_key, (seen.rows,), jnp.float32)

        keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(seen.key, seen.layer)
        s_BSK = jax.vmap(jax.vmap(one_token, in_axes=(None, 0)))(keys_B, seen.position)
        return s_BSK.swapaxes(1, 2)
