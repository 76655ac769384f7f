"""The decoder: embed, L layers of attention and gated MLP, norm, vocabulary logits.

One module serves every dense family; what differs between families is data in
`DecoderConfig`. Projections are stored fused (q, k and v; gate and up): a decode step
that reads one large matrix comes nearer to the memory's speed than three small ones.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.attention.kinds import attention
from jaxkv.models.config import DecoderConfig
from jaxkv.models.layers import GatedMLP, RMSNorm, lookup


class Decoder(nnx.Module):
    """Token ids (B, T) to logits (B, T, V). Parameters have dtype `dtype`."""

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        shape = (config.vocabulary, config.width)
        scale = config.initial_scale
        self.config = config
        self.table = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * scale)
        self.layers = nnx.List(
            [Layer(config, i, rngs=rngs, dtype=dtype) for i in range(config.layers)]
        )
        self.norm = RMSNorm(config.width, config.norm_eps, dtype)
        if not config.tie_embeddings:
            self.head = nnx.Param(
                jax.random.normal(rngs.params(), shape, dtype) * scale
            )

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        position: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of every position; `position` counts from 0 when not given."""
        return self.logits(self.hidden(token_ids, position))

    def hidden(
        self,
        token_ids: Int[Array, "B T"],
        position: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The last layer's normed hidden states, causal over the whole sequence."""
        if position is None:
            position = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        x_BTD = self.embed(token_ids)
        for layer in self.layers:
            x_BTD = layer(x_BTD, position)
        return self.norm(x_BTD)

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The tokens' embeddings."""
        return lookup(self.table[...], token_ids)

    def logits(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Vocabulary logits of normed hidden states."""
        tied = self.config.tie_embeddings
        head = self.table[...] if tied else self.head[...]
        return jnp.einsum("...d,vd->...v", x, head)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, config: DecoderConfig, index: int = 0, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        width, eps = config.width, config.norm_eps
        self.attention_norm = RMSNorm(width, eps, dtype)
        self.attention = attention(config, index, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(width, eps, dtype)
        self.mlp = GatedMLP(
            width, config.feed_forward, config.initial_scale, rngs, dtype
        )

    def __call__(
        self, x: Float[Array, "B T D"], position: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        x = x + self.attention(self.attention_norm(x), position)
        return x + self.mlp(self.mlp_norm(x))
