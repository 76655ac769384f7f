"""How queries attend where each kv head has keys and values of its own.

    out = concat_n(softmax(q_n k_{n // G}^T / sqrt(H)) v_{n // G}) W_o

What queries, keys and values are made of is a subclass's.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkv.attend.all_pages import attend_by_row, by_token
from jaxkv.attention.base import Attention
from jaxkv.attention.by_position import attend_by_position
from jaxkv.attention.causal import causal_attention_and_lse
from jaxkv.mesh import summed


class ByKvHead(Attention):
    """Grouped queries; a cache entry is a rotated key and a value."""

    out: nnx.Param  # W_o, [K, G, H, D]

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
