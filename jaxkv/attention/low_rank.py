"""Low-rank attention: a kv head's keys and values cut to the directions that count.

A layer of grouped queries as it was, and two orthogonal bases U of each kv head, whose
first columns hold the most of what the head makes. With r the head's ranks, U_r the
first r columns, and m the values' mean,

    entry = [v U_r, k U_r]                              r_v and r_k numbers
    out = concat_n(softmax(q_n k^T / sqrt(H)) v) W_o
    k ~ (k U_r) U_r^T,    v ~ (v U_r) U_r^T + m - m U_r U_r^T

at full rank exactly. The bases are whole whatever the ranks, so that a model may be cut
to others. Heads of a layer may share their numbers out to key and value as they like,
but all have as many, W, because the pages of a layer are of one size. The group's
queries share their head's basis, so that nothing is repeated for them.

Taking the keys' mean away before they are cut, as MatryoshkaKV does, would add the same
number to all logits of a query: softmax does not see it, so there is none here. Of the
values' mean only what the cut drops is added, and only to the output, because the
weights of a softmax sum to 1 and those of a part of one do not.

    matryoshka.py    keys are cut after RoPE; a cache is read absorbed
    eigen.py         keys are cut before RoPE; read keys are made again, and rotated
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxkv.attention.base import Attention
from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import LowRankSizes
from pallas_kernels.dispatch import platform


class LowRank(Attention):
    """grouped is the layer of grouped queries; key_basis [K, H, H], or [1, H, H] where
    all heads share it, value_basis [K, H, H], value_mean [K, H]. Fresh bases keep the
    first numbers of a head.
    """

    def __init__(
        self,
        config: DecoderConfig,
        sizes: LowRankSizes,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        K, H = config.kv_heads, config.head_dim
        same = jnp.tile(jnp.eye(H, dtype=dtype)[None], (K, 1, 1))
        self.config, self.sizes = config, sizes
        self.grouped = GroupedQuery(config, rngs=rngs, dtype=dtype)
        self.scale = self.grouped.scale
        self.value_dim = max(sizes.value_ranks)
        self.key_basis = nnx.Param(same[: sizes.key_bases])
        self.value_basis = nnx.Param(same)
        self.value_mean = nnx.Param(jnp.zeros((K, H), dtype))

    @property
    def inverse_frequencies(self) -> np.ndarray:
        """None of a key's numbers are RoPE's pairs any more."""
        return np.zeros(0, np.float32)

    @property
    def key_part(self) -> Bool[Array, "K W"]:
        return jnp.asarray(_layout(self.sizes, keys=True)[1])

    def output(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """Heads, and the mean of what their values were cut of, through W_o."""
        kept_KHE = self._value_columns
        mean_KH = self.value_mean[...]
        coordinates_KE = jnp.einsum("KH,KHE->KE", mean_KH, kept_KHE)
        rest_KH = mean_KH - jnp.einsum("KE,KHE->KH", coordinates_KE, kept_KHE)
        rest_BTKGH = rest_KH[None, None, :, None].astype(heads.dtype)
        by_group = self._by_group(heads) + rest_BTKGH
        return self.grouped.output(by_group.reshape(heads.shape))

    def of_values(self) -> Float[Array, "K G E D"]:
        return jnp.einsum("KHE,KGHD->KGED", self._value_columns, self.grouped.out[...])

    def _entry(
        self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> Float[Array, "B T K W"]:
        """[v U_r, k U_r]; products and sums of it in fp32."""
        value_KHW = _columns(self.value_basis[...], *_layout(self.sizes, keys=False))
        entry_BTKW = _product("BTKH,KHW->BTKW", k, self._key_columns)
        entry_BTKW += _product("BTKH,KHW->BTKW", v, value_KHW)
        return entry_BTKW.astype(k.dtype)

    def asked(self, q: Float[Array, "B T N H"]) -> Float[Array, "B T N W"]:
        """[0, q U_r]: times an entry, what the query times the key is.

        Of keys that are not rotated, as if all stood at one position.
        """
        by_group = self._by_group(q)
        asked_BTKGW = _product("BTKGH,KHW->BTKGW", by_group, self._key_columns)
        return asked_BTKGW.astype(q.dtype).reshape(*q.shape[:3], self.sizes.entry)

    def _restored(
        self, entry: Float[Array, "B S K W"]
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values as the layer made them, but for what was cut."""
        E = self.value_dim
        k_BSKH = _product("BSKW,KHW->BSKH", entry, self._key_columns)
        v_BSKH = _product("BSKE,KHE->BSKH", entry[..., :E], self._value_columns)
        return k_BSKH.astype(entry.dtype), v_BSKH.astype(entry.dtype)

    def _heads(self, attended: Float[Array, "B T N E"]) -> Float[Array, "B T N H"]:
        """Of entries' first numbers, weighed by attention, what the heads give."""
        by_group = self._by_group(attended)
        heads = _product("BTKGE,KHE->BTKGH", by_group, self._value_columns)
        shape = *attended.shape[:3], self.config.head_dim
        return heads.astype(attended.dtype).reshape(shape)

    def _by_group(self, x: Float[Array, "B T N X"]) -> Float[Array, "B T K G X"]:
        B, T, _, X = x.shape
        return x.reshape(B, T, self.config.kv_heads, self.config.group, X)

    @property
    def _key_columns(self) -> Float[Array, "K H W"]:
        """U_r where an entry's key is, and 0 where its value is."""
        return _columns(self.key_basis[...], *_layout(self.sizes, keys=True))

    @property
    def _value_columns(self) -> Float[Array, "K H E"]:
        """U_r, and 0 beyond where other heads have a higher rank."""
        at_KW, mine_KW = _layout(self.sizes, keys=False)
        E = self.value_dim
        return _columns(self.value_basis[...], at_KW[:, :E], mine_KW[:, :E])


def _layout(sizes: LowRankSizes, *, keys: bool) -> tuple[np.ndarray, np.ndarray]:
    """[K, W]: which column of a head's basis an entry's number is of, and whether."""
    at_W = np.arange(sizes.entry)[None]
    value_ranks = np.array(sizes.value_ranks)[:, None]
    if keys:
        return np.maximum(at_W - value_ranks, 0), at_W >= value_ranks
    return np.minimum(at_W, value_ranks - 1), at_W < value_ranks


def _columns(
    basis: Float[Array, "#K H H"], at: np.ndarray, mine: np.ndarray
) -> Float[Array, "K H W"]:
    """A basis's columns where an entry has them, and 0 elsewhere."""
    if (at == at[:1]).all():  # alike in all heads: no gather of each one's own
        found = basis[:, :, at[0]]
    else:
        found = jnp.take_along_axis(basis, jnp.asarray(at)[:, None], axis=2)
    return jnp.where(jnp.asarray(mine)[:, None], found, 0)


def _product(shapes: str, x: Array, y: Array) -> Array:
    """In fp32, of numbers of any size."""
    if platform() in ("cpu", "any"):
        # XLA's CPU backend has no product of bfloat16 to float32 for many matrices.
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(shapes, x, y, preferred_element_type=jnp.float32)
