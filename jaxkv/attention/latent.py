"""Latent attention: one latent a token for the keys and values of all heads (MLA).

DeepSeek-V2, arXiv 2405.04434. With R the latent's rank, per token and head n:

    q_n = [qn_n, rope(qr_n)] = norm(x W_dq) W_uq,n      (x W_q,n without a query rank)
    c = norm(x W_c),    r = rope(x W_r)                 the entry [c, r] that is cached
    k_n = [c W_uk,n, r],    v_n = c W_uv,n
    out = concat_n(softmax(q_n k_n^T s) v_n) W_o,    s = m / sqrt(nope_dim + rope_dim)

norm is an RMS norm where the sizes ask for it; m is YaRN's factor or 1. A prompt's
tokens attend to each other so, with keys and values of every head. A cache is read
absorbed, by all heads as one row whose key is the entry and whose value is its latent:

    q_n k_n^T = [qn_n W_uk,n^T, rope(qr_n)] [c, r]^T,    out_n = (sum_j a_j c_j) W_uv,n
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.attend.all_pages import attend_by_row, by_token
from jaxkv.attention.base import Attention, Trail
from jaxkv.attention.by_position import attend_by_position
from jaxkv.attention.causal import causal_attention_and_lse
from jaxkv.attention.rope import rotate
from jaxkv.mesh import summed
from jaxkv.models.config import DecoderConfig
from jaxkv.models.frequencies import Yarn
from jaxkv.models.layers import RMSNorm
from jaxkv.models.sizes import LatentSizes

NORM_EPS = 1e-6  # of latents, as transformers has it whatever the config's own is


class LatentAttention(Attention):
    """With N heads, Q = nope_dim + rope_dim and U = value_dim:

    query [D, N, Q], or query_down [D, query_rank] and query_up [query_rank, N, Q];
    down [D, R + rope_dim] is W_c and W_r, up [R, N, nope_dim + U] W_uk and W_uv;
    heads_out [N, U, D] is W_o.
    """

    def __init__(
        self,
        config: DecoderConfig,
        sizes: LatentSizes,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        D, N, R = config.width, config.query_heads, sizes.rank
        Q, U = sizes.nope_dim + sizes.rope_dim, sizes.value_dim

        def fresh(*shape: int) -> nnx.Param:
            drawn = jax.random.normal(rngs.params(), shape, dtype)
            return nnx.Param(drawn * config.initial_scale)

        self.config, self.sizes = config, sizes
        self.scale = Q**-0.5
        self.value_dim = R
        if sizes.query_rank is None:
            self.query = fresh(D, N, Q)
        else:
            self.query_down = fresh(D, sizes.query_rank)
            self.query_up = fresh(sizes.query_rank, N, Q)
        self.down = fresh(D, sizes.entry)
        self.up = fresh(R, N, sizes.nope_dim + U)
        self.heads_out = fresh(N, U, D)
        if sizes.norm:
            self.norm = RMSNorm(R, NORM_EPS, dtype)
            if sizes.query_rank is not None:
                self.query_norm = RMSNorm(sizes.query_rank, NORM_EPS, dtype)

    @property
    def inverse_frequencies(self) -> np.ndarray:
        return self.config.inverse_frequencies(self.sizes.rope_dim)

    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: Trail = None,
    ) -> tuple[Float[Array, "B T N Q"], Float[Array, "B T 1 H"], None]:
        """Queries of every head, and the entries, which are keys and values in one."""
        q_BTNQ = rotate(self._queries(x), position, self.inverse_frequencies)
        entry_BTH = jnp.einsum("BTD,DH->BTH", x, self.down[...])
        if self.sizes.norm:
            c_BTR, r_BTH = jnp.split(entry_BTH, [self.sizes.rank], axis=-1)
            entry_BTH = jnp.concatenate([self.norm(c_BTR), r_BTH], axis=-1)
        entry_BT1H = rotate(entry_BTH[:, :, None], position, self.inverse_frequencies)
        return self._with_yarn(q_BTNQ), entry_BT1H, None

    def asked(self, q: Float[Array, "B T N Q"]) -> Float[Array, "B T N H"]:
        """The queries behind W_uk, absorbed; products and sums of it in fp32."""
        nope_BTNQ, rope_BTNQ = jnp.split(q, [self.sizes.nope_dim], axis=-1)
        c_BTNR = jnp.einsum(
            "BTNQ,RNQ->BTNR",
            nope_BTNQ,
            self._up_keys,
            preferred_element_type=jnp.float32,
        )
        return jnp.concatenate([c_BTNR.astype(q.dtype), rope_BTNQ], axis=-1)

    def attend_prompt(
        self,
        q: Float[Array, "B S N Q"],
        k: Float[Array, "B S 1 H"],
        v: None,
        segment: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S N U"], Float[Array, "B S N"] | None]:
        return causal_attention_and_lse(q, *self._by_head(k), segment)

    def attend_entries(
        self,
        q: Float[Array, "B T N Q"],
        k: Float[Array, "B S 1 H"],
        v: None,
        q_position: Int[Array, "B T"],
        k_position: Int[Array, " B 1 S"],
    ) -> tuple[Float[Array, "B T N U"], Float[Array, "B T N"]]:
        return attend_by_position(q, *self._by_head(k), q_position, k_position)

    def attend_pages(self, q, pages, position, layer=0, *, return_logits=False):
        """Absorbed."""
        by_row, lse, logits = attend_by_row(
            self.asked(q),
            pages,
            position,
            layer,
            scale=self.scale,
            value_dim=self.value_dim,
            return_logits=return_logits,
        )
        heads_BTNU = jnp.einsum(
            "BTNR,RNU->BTNU",
            by_token(by_row),
            self._up_values,
            preferred_element_type=jnp.float32,
        )
        return heads_BTNU.astype(q.dtype), lse, logits

    def output(self, heads: Float[Array, "B T N U"]) -> Float[Array, "B T D"]:
        B, T, N, U = heads.shape
        out = self.heads_out[...].reshape(N * U, -1)
        o_BTI = heads.reshape(B, T, N * U)
        return jnp.einsum("BTI,ID->BTD", o_BTI, out, out_sharding=summed(o_BTI))

    def of_values(self) -> Float[Array, "1 N R D"]:
        out = jnp.einsum("RNU,NUD->NRD", self._up_values, self.heads_out[...])
        return out[None]

    def _queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N Q"]:
        """Not rotated."""
        if self.sizes.query_rank is None:
            return jnp.einsum("BTD,DNQ->BTNQ", x, self.query[...])
        c_BTC = jnp.einsum("BTD,DC->BTC", x, self.query_down[...])
        if self.sizes.norm:
            c_BTC = self.query_norm(c_BTC)
        return jnp.einsum("BTC,CNQ->BTNQ", c_BTC, self.query_up[...])

    def _with_yarn(self, q: Float[Array, "B T N Q"]) -> Float[Array, "B T N Q"]:
        """The queries times what YaRN multiplies logits by."""
        yarn = self.config.rope_scaling
        if not isinstance(yarn, Yarn):
            return q
        factor_Q = np.full(q.shape[-1], yarn.of_softmax, np.float32)
        factor_Q[self.sizes.nope_dim :] *= yarn.of_rotated
        return (q.astype(jnp.float32) * factor_Q[None, None, None]).astype(q.dtype)

    def _by_head(
        self, entry: Float[Array, "B S 1 H"]
    ) -> tuple[Float[Array, "B S N Q"], Float[Array, "B S N U"]]:
        """Every head's keys and values."""
        c_BSR, r_BSH = jnp.split(entry[:, :, 0], [self.sizes.rank], axis=-1)
        both_BSNA = jnp.einsum("BSR,RNA->BSNA", c_BSR, self.up[...])
        k_BSNQ, v_BSNU = jnp.split(both_BSNA, [self.sizes.nope_dim], axis=-1)
        # A sum, and no broadcast: under explicit axes it lies as the keys do.
        r_BSNH = r_BSH[:, :, None] + jnp.zeros_like(k_BSNQ[..., :1])
        return jnp.concatenate([k_BSNQ, r_BSNH], axis=-1), v_BSNU

    @property
    def _up_keys(self) -> Float[Array, "R N Q"]:
        return self.up[...][..., : self.sizes.nope_dim]

    @property
    def _up_values(self) -> Float[Array, "R N U"]:
        return self.up[...][..., self.sizes.nope_dim :]
