"""Attention in a latent that convolutions mix: CCA, and CCGQA where G > 1.

Compressed Convolutional Attention, arXiv 2510.04476. x is projected to few heads, and
all of attention happens there. Of token t and kv head k with query heads n = 1 .. G,

    z = [q0_1 .. q0_G, k0] = x [W_q, W_k],    u = x W_v
    c_t = b + sum_i a_i * z_{t-i}                   each number by itself (channels)
    y_t = d + sum_j c_{t-j} M_j                     each head's numbers (heads)
    m_n = (q0_n + k0) / 2                           of each query head
    q_n = sqrt(H) unit(y_n + m_n),  k = s sqrt(H) unit(y_k + mean_n m_n)
    v_t = [first half of u_t, second half of u_{t-1}]           halves over all kv heads

unit is x / ||x||_2 in fp32 and s the kv head's temperature. The last `rope_dim` numbers
of queries and keys are rotated after that; they attend as grouped queries do, and one
W_o leads back to the width. Before a sequence's first token z and u are 0 and c is b.
So it is before every token whose position is not the one after its neighbour's:
documents packed in a row do not mix. The trail is [z, u] of the last tokens, smaller
than their x, and cut by kv head as the cache is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.attention.by_kv_head import ByKvHead
from jaxkv.attention.rope import rotate
from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import ConvolutionalSizes

NOWHERE = np.iinfo(np.int32).min // 2  # a position that no token follows


class ConvolutionalAttention(ByKvHead):
    """Weights lie by kv head, X = G + 1 heads with its queries and its key:

    qkv [D, K, G + 2, H] has its G query matrices, its key's and its value's;
    channels [I, K, X, H] is a_i and heads [I, K, X, H, H] is M_i, i tokens before;
    channels_bias and heads_bias [K * X * H] are b and d; temperature [K] is s.
    """

    def __init__(
        self,
        config: DecoderConfig,
        sizes: ConvolutionalSizes,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        """Convolutions begin as torch's do: uniform up to 1 / sqrt(what is summed)."""
        D, K, H = config.width, sizes.kv_heads, sizes.head_dim
        G = sizes.query_heads // K
        X = G + 1

        def fresh(*shape: int) -> nnx.Param:
            drawn = jax.random.normal(rngs.params(), shape, dtype)
            return nnx.Param(drawn * config.initial_scale)

        def uniform(summed: int, *shape: int) -> nnx.Param:
            most = summed**-0.5
            drawn = jax.random.uniform(rngs.params(), shape, dtype, -most, most)
            return nnx.Param(drawn)

        many, few = sizes.channel_kernel, sizes.head_kernel
        self.config, self.sizes = config, sizes
        self.scale = H**-0.5
        self.value_dim = H
        self.qkv = fresh(D, K, X + 1, H)
        self.channels = uniform(many, many, K, X, H)
        self.channels_bias = uniform(many, K * X * H)
        self.heads = uniform(few * H, few, K, X, H, H)
        self.heads_bias = uniform(few * H, K * X * H)
        self.temperature = nnx.Param(jnp.ones((K,), dtype))
        self.out = fresh(K, G, H, D)

    @property
    def inverse_frequencies(self) -> np.ndarray:
        return self.config.inverse_frequencies(self.sizes.rope_dim)

    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: Float[Array, "B K I A H"] | None = None,
    ) -> tuple[
        Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]
    ]:
        """Queries and keys with a length of their own, rotated, and shifted values."""
        B, T, _ = x.shape
        N, H = self.sizes.query_heads, self.sizes.head_dim
        qkv_BSKAH, at_BS = self._projected(x), position
        if trail is not None:
            qkv_BSKAH = jnp.concatenate([trail.swapaxes(1, 2), qkv_BSKAH], axis=1)
            ago = np.arange(-trail.shape[2], 0, dtype=np.int32)[None]
            at_BS = jnp.concatenate([position[:, :1] + ago, position], axis=1)
        qk_BSKXH, u_BSK1H = jnp.split(qkv_BSKAH, [qkv_BSKAH.shape[3] - 1], axis=3)
        y_BTKXH = self._convolved(qk_BSKXH, at_BS)[:, -T:]
        y_BTKXH = y_BTKXH + _skipped(qk_BSKXH[:, -T:].astype(jnp.float32))
        y_BTKXH = _unit(y_BTKXH) * np.float32(H**0.5)
        q_BTKGH, k_BTK1H = jnp.split(y_BTKXH, [y_BTKXH.shape[3] - 1], axis=3)
        s_K = self.temperature[...].astype(jnp.float32)
        k_BTKH = (k_BTK1H.squeeze(3) * s_K[None, None, :, None]).astype(x.dtype)
        q_BTNH = q_BTKGH.astype(x.dtype).reshape(B, T, N, H)
        frequencies = self.inverse_frequencies
        return (
            rotate(q_BTNH, position, frequencies),
            rotate(k_BTKH, position, frequencies),
            self._shifted(u_BSK1H, at_BS)[:, -T:].squeeze(3),
        )

    def trail(
        self,
        x: Float[Array, "B T D"],
        length: Int[Array, " B"],
        before: Float[Array, "B K I A H"] | None = None,
    ) -> Float[Array, "B K I A H"]:
        """What x W gave of the last tokens; 0 where there were fewer."""
        I = self.sizes.lookback
        qkv_BTKAH = self._projected(x)
        if before is None:
            qkv_BSKAH = _pushed(qkv_BTKAH, I, keep=True)
        else:
            qkv_BSKAH = jnp.concatenate([before.swapaxes(1, 2), qkv_BTKAH], axis=1)
        last_BI = length[:, None] + np.arange(I, dtype=np.int32)[None]
        last_BI111 = last_BI[:, :, None, None, None]
        return jnp.take_along_axis(qkv_BSKAH, last_BI111, axis=1).swapaxes(1, 2)

    def _projected(self, x: Float[Array, "B T D"]) -> Float[Array, "B T K A H"]:
        return jnp.einsum("BTD,DKAH->BTKAH", x, self.qkv[...])

    def _convolved(
        self, z: Float[Array, "B T K X H"], position: Int[Array, "B T"]
    ) -> Float[Array, "B T K X H"]:
        """y in fp32; products of c are of z's dtype."""
        _, K, X, H = self.channels.shape
        a_IKXH = self.channels[...].astype(jnp.float32)
        b_KXH = self.channels_bias[...].astype(jnp.float32).reshape(K, X, H)
        d_KXH = self.heads_bias[...].astype(jnp.float32).reshape(K, X, H)
        z32, b_11KXH = z.astype(jnp.float32), b_KXH[None, None]
        c_BTKXH = b_11KXH + sum(
            _earlier(z32, position, i) * a_IKXH[i][None, None]
            for i in range(self.sizes.channel_kernel)
        )
        y_BTKXH = d_KXH[None, None]
        for j in range(self.sizes.head_kernel):
            c_j = _earlier(c_BTKXH, position, j, b_11KXH).astype(z.dtype)
            mixed = jnp.einsum("BTKXH,KXHE->BTKXE", c_j, self.heads[...][j])
            y_BTKXH = y_BTKXH + mixed.astype(jnp.float32)
        return y_BTKXH

    def _shifted(
        self, u: Float[Array, "B T K 1 H"], position: Int[Array, "B T"]
    ) -> Float[Array, "B T K 1 H"]:
        """The second half of all kv heads' numbers is the token's before."""
        K, H = self.sizes.kv_heads, self.sizes.head_dim
        late = (np.arange(K * H) >= K * H // 2).reshape(1, 1, K, 1, H)
        late = jnp.asarray(late, u.dtype)
        return u * (1 - late) + _earlier(u, position, 1) * late


def _skipped(qk: Float[Array, "B T K X H"]) -> Float[Array, "B T K X H"]:
    """(q0_n + k0) / 2 of each query head, and their mean for the key."""
    q_BTKGH, k_BTK1H = jnp.split(qk, [qk.shape[3] - 1], axis=3)
    of_q = (q_BTKGH + k_BTK1H) / 2
    return jnp.concatenate([of_q, of_q.mean(axis=3, keepdims=True)], axis=3)


def _unit(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """x / ||x||, with a gradient at 0 too."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(x.dtype).eps ** 2))


def _earlier(
    x: Float[Array, "B T K X H"],
    position: Int[Array, "B T"],
    by: int,
    otherwise: Float[Array, "1 1 K X H"] | float = 0.0,
) -> Float[Array, "B T K X H"]:
    """x of the token `by` before each; `otherwise` where none stands there.

    Products, and no `where`: under explicit axes they lie as x does.
    """
    if by == 0:
        return x
    at_BT = _pushed(position, by, value=NOWHERE)
    there = (at_BT == position - by)[:, :, None, None, None].astype(x.dtype)
    return _pushed(x, by) * there + otherwise * (1 - there)


def _pushed(x: Array, by: int, *, keep: bool = False, value: int = 0) -> Array:
    """x with `by` of `value` before it, along axis 1; as long as before, or not."""
    widths = [(0, 0), (by, 0)] + [(0, 0)] * (x.ndim - 2)
    pushed = jnp.pad(x, widths, constant_values=value)
    return pushed if keep else pushed[:, : x.shape[1]]
