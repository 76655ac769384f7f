"""Grouped-query attention: MHA (G = 1), GQA, and MQA (K = 1) in one module.

    q = rope(norm(x W_q)),  k = rope(norm(x W_k)),  v = x W_v
    out = concat_n(softmax(q_n k_{n // G}^T / sqrt(H)) v_{n // G}) W_o

norm is the per-head RMS norm of Qwen3 where the config asks for it, else nothing. A
cache entry is the rotated key and the value.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.attention.base import Trail
from jaxkv.attention.by_kv_head import ByKvHead
from jaxkv.attention.rope import rotate
from jaxkv.models.config import DecoderConfig
from jaxkv.models.layers import RMSNorm


class GroupedQuery(ByKvHead):
    """Weights are fused and grouped by kv head, so that one axis shards them all:

    qkv [D, K, G + 2, H] holds a kv head's G query matrices, its key and its value;
    out [K, G, H, D] is W_o.
    """

    def __init__(
        self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        D, K, G, H = config.width, config.kv_heads, config.group, config.head_dim
        scale = config.initial_scale
        normal = jax.random.normal
        self.config = config
        self.scale = H**-0.5
        self.value_dim = H
        self.qkv = nnx.Param(normal(rngs.params(), (D, K, G + 2, H), dtype) * scale)
        self.out = nnx.Param(normal(rngs.params(), (K, G, H, D), dtype) * scale)
        if config.qk_norm:
            self.q_norm = RMSNorm(H, config.norm_eps, dtype)
            self.k_norm = RMSNorm(H, config.norm_eps, dtype)

    @property
    def inverse_frequencies(self) -> np.ndarray:
        return self.config.inverse_frequencies()

    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: Trail = None,
    ) -> tuple[
        Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]
    ]:
        """Rotated queries, rotated keys and values of new tokens."""
        q_BTNH, k_BTKH, v_BTKH = self.before_rope(x)
        frequencies = self.inverse_frequencies
        q_BTNH = rotate(q_BTNH, position, frequencies)
        return q_BTNH, rotate(k_BTKH, position, frequencies), v_BTKH

    def before_rope(
        self, x: Float[Array, "B T D"]
    ) -> tuple[
        Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]
    ]:
        """Queries, keys and values of new tokens, normed and not rotated."""
        B, T, _ = x.shape
        G, H = self.config.group, self.config.head_dim
        qkv_BTKGH = jnp.einsum("BTD,DKGH->BTKGH", x, self.qkv[...])
        q_BTKGH, k_BTK1H, v_BTK1H = jnp.split(qkv_BTKGH, (G, G + 1), axis=3)
        q_BTNH = q_BTKGH.reshape(B, T, self.config.query_heads, H)
        k_BTKH, v_BTKH = k_BTK1H.squeeze(3), v_BTK1H.squeeze(3)
        if self.config.qk_norm:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        return q_BTNH, k_BTKH, v_BTKH
