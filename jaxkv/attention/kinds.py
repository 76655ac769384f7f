"""Which module a layer attends with: what its config names."""

from flax import nnx
from jax.typing import DTypeLike

from jaxkv.attention.base import Attention
from jaxkv.attention.convolutional import ConvolutionalAttention
from jaxkv.attention.eigen import Eigen
from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.attention.latent import LatentAttention
from jaxkv.attention.matryoshka import Matryoshka
from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import ConvolutionalSizes, LatentSizes, LowRankSizes


def attention(
    config: DecoderConfig, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike
) -> Attention:
    """A layer's attention, with fresh weights."""
    match config.sizes(layer):
        case None:
            return GroupedQuery(config, rngs=rngs, dtype=dtype)
        case LatentSizes() as sizes:
            return LatentAttention(config, sizes, rngs=rngs, dtype=dtype)
        case LowRankSizes() as sizes:
            kind = Matryoshka if sizes.after_rope else Eigen
            return kind(config, sizes, rngs=rngs, dtype=dtype)
        case ConvolutionalSizes() as sizes:
            return ConvolutionalAttention(config, sizes, rngs=rngs, dtype=dtype)
        case other:
            raise ValueError(f"There is no attention of {other}.")
