"""Which module a layer attends with: what its config names."""

from flax import nnx
from jax.typing import DTypeLike

from jaxkv.attention.base import Attention
from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.attention.latent import LatentAttention
from jaxkv.models.config import DecoderConfig


def attention(
    config: DecoderConfig, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike
) -> Attention:
    """A layer's attention, with fresh weights."""
    latent = config.latent(layer)
    if latent is None:
        return GroupedQuery(config, rngs=rngs, dtype=dtype)
    return LatentAttention(config, latent, rngs=rngs, dtype=dtype)
