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

from jaxkv.attend.all_pages import attend_by_row, by_token
from jaxkv.attention.base import Attention
from jaxkv.attention.by_position import attend_by_position
from jaxkv.attention.causal import causal_attention_and_lse
from jaxkv.attention.rope import rotate
from jaxkv.mesh import summed
from jaxkv.models.config import DecoderConfig
from jaxkv.models.layers import RMSNorm


class GroupedQuery(Attention):
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
        self, x: Float[Array, "B T D"], position: Int[Array, "B T"]
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

    def asked(self, q: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        return q

    def attend_prompt(
        self,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        segment: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"] | None]:
        return causal_attention_and_lse(q, k, v, segment)

    def attend_entries(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        q_position: Int[Array, "B T"],
        k_position: Int[Array, " B #K S"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
        return attend_by_position(q, k, v, q_position, k_position)

    def attend_pages(self, q, pages, position, layer=0, *, return_logits=False):
        by_row, lse, logits = attend_by_row(
            q, pages, position, layer, return_logits=return_logits
        )
        return by_token(by_row), lse, logits

    def output(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """Heads' outputs through W_o.

        One contracted axis: with three, XLA transposes the whole matrix at every step.
        """
        B, T, N, H = heads.shape
        out = self.out[...].reshape(N * H, -1)
        o_BTI = heads.reshape(B, T, N * H)
        return jnp.einsum("BTI,ID->BTD", o_BTI, out, out_sharding=summed(o_BTI))

    def of_values(self) -> Float[Array, "K G H D"]:
        return self.out[...]
