"""Bases of low-rank attention, trained so that their first columns hold the most.

MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection,
arXiv 2410.14731. In a model whose layers have full rank, and which the paper freezes,
each kv head's bases and its values' mean become

    U = U_0 cayley(X),    m = m_0 + y        X and y are 0 at first

and in each layer and step every head's keys and values are cut to ranks drawn anew, so
that one set of bases serves all of them:

    k ~ (k U_r) U_r^T,    v ~ (v - m) U_r U_r^T + m,    r from {H / 8, 2 H / 8, .. H}

The paper gives X the Cayley form of the whole basis; turning from U_0 reaches the same
bases, and none is out of reach for its signs. What was learned goes into the model.
Ranks that are alike in all heads (`Bases.alike`) are ours: they are what a cut without
a search leaves, and rare where every head draws its own.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxkv.attention.base import Attention
from jaxkv.attention.cayley import cayley
from jaxkv.attention.matryoshka import Matryoshka
from jaxkv.convert.base import parameters, with_attention
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.sizes import LowRankSizes
from jaxkv.train.add_ons.base import Added, AddOn, Attended

STEPS = 8  # ranks that are drawn, from an eighth of a head to all of it


@dataclass(frozen=True)
class Bases(AddOn):
    """What turns the bases of every layer's keys and values.

    Attributes:
      least: the least rank that is drawn, in eighths of a head.
      alike: the share of steps in which all keys of the model have one rank and all
        values one, from the least on; every sum of the two is as likely.

    Raises:
      ValueError: least is not 1 to 8, or alike no share.
    """

    least: int = 1
    alike: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= STEPS or not 0 <= self.alike <= 1:
            raise ValueError(
                f"least={self.least} and alike={self.alike}; give 1 to {STEPS} eighths "
                "of a head, and a share of the steps from 0 to 1."
            )

    def __call__(self, config: DecoderConfig, rngs: nnx.Rngs) -> "TurnedBases":
        return TurnedBases(config, self)


class TurnedBases(Added):
    """key and value [L, K, H, H] are X, mean [L, K, H] is y; fp32."""

    def __init__(self, config: DecoderConfig, draws: Bases | None = None) -> None:
        for i in range(config.layers):
            sizes = config.sizes(i)
            if not isinstance(sizes, LowRankSizes) or not sizes.after_rope:
                raise ValueError(
                    f"Layer {i} has no bases of rotated keys to train; give a model "
                    "that `jaxkv convert --to matryoshka --keep-bytes 1` wrote."
                )
        if config.head_dim % STEPS:
            raise ValueError(
                f"Ranks are drawn from {STEPS}, and head_dim={config.head_dim} is no "
                "multiple of it; give another model."
            )
        L, K, H = config.layers, config.kv_heads, config.head_dim
        self.draws = draws or Bases()
        self.key = nnx.Param(jnp.zeros((L, K, H, H)))
        self.value = nnx.Param(jnp.zeros((L, K, H, H)))
        self.mean = nnx.Param(jnp.zeros((L, K, H)))

    def attend(
        self,
        i: Int[Array, ""],
        attention: Attention,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        segment: Int[Array, "B T"] | None,
        key: Key[Array, ""] | None = None,
    ) -> Attended:
        """With ranks that the key draws; whole without one."""
        assert isinstance(attention, Matryoshka)  # the module's config says so
        key_KHH, value_KHH, mean_KH = self._at(i, attention)
        K, H = mean_KH.shape
        ranks_2K = jnp.full((2, K), H)
        if key is not None:
            ranks_2K = self._drawn(i, key)
        q, k, v = attention.grouped.entries(x, position)
        k = _cut(k, key_KHH, ranks_2K[0], jnp.zeros_like(mean_KH))
        v = _cut(v, value_KHH, ranks_2K[1], mean_KH)
        heads, _ = attention.grouped.attend_prompt(q, k, v, segment)
        return Attended(attention.grouped.output(heads))

    def _drawn(self, i: Int[Array, ""], key: Key[Array, ""]) -> Int[Array, "2 K"]:
        """The ranks of a layer's keys and values in a step."""
        L, K, H = self.mean.shape
        least, step = self.draws.least, H // STEPS
        own = jax.random.fold_in(key, i)
        each_2K = jax.random.randint(own, (2, K), least, STEPS + 1) * step
        if not self.draws.alike:
            return each_2K
        one_2 = _alike(jax.random.fold_in(key, L), least * step, H)
        alike = jax.random.bernoulli(jax.random.fold_in(key, L + 1), self.draws.alike)
        return jnp.where(alike, one_2[:, None], each_2K)

    def into(self, model: Decoder) -> Decoder:
        """The model with these bases in place of its own; its ranks stay."""
        before = parameters(model)["layers"]

        def made():
            for i, layer in enumerate(model.layers):
                attention = layer.attention
                assert isinstance(attention, Matryoshka)
                key, value, mean = self._at(jnp.int32(i), attention)
                own = {"key_basis": key, "value_basis": value, "value_mean": mean}
                yield i, attention.sizes, before[i]["attention"] | own

        return with_attention(model, made())

    def _at(
        self, i: Int[Array, ""], attention: Matryoshka
    ) -> tuple[Float[Array, "K H H"], Float[Array, "K H H"], Float[Array, "K H"]]:
        """A layer's bases and mean, as they are now, in fp32."""
        moved_KH = self.mean[...][i].astype(jnp.float32)
        return (
            _turned(attention.key_basis[...], self.key[...][i]),
            _turned(attention.value_basis[...], self.value[...][i]),
            attention.value_mean[...].astype(jnp.float32) + moved_KH,
        )


def _alike(key: Key[Array, ""], least: int, H: int) -> Int[Array, "2"]:
    """A rank of keys and one of values: of every sum alike, and parted in any way."""
    of_sum, of_key = jax.random.split(key)
    both = jax.random.randint(of_sum, (), 2 * least, 2 * H + 1)
    low, high = jnp.maximum(least, both - H), jnp.minimum(H, both - least)
    rank = jax.random.randint(of_key, (), low, high + 1)
    return jnp.stack([rank, both - rank])


def _turned(
    basis: Float[Array, "K H H"], x: Float[Array, "K H H"]
) -> Float[Array, "K H H"]:
    """U_0 cayley(X), fp32."""
    turn = cayley(x.astype(jnp.float32))
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("KHI,KIE->KHE", basis.astype(jnp.float32), turn, precision=exact)


def _cut(
    x: Float[Array, "B T K H"],
    basis: Float[Array, "K H H"],
    rank: Int[Array, " K"],
    mean: Float[Array, "K H"],
) -> Float[Array, "B T K H"]:
    """(x - m) U_r U_r^T + m, in x's dtype."""
    H = x.shape[-1]
    kept_KE = np.arange(H)[None] < rank[:, None]
    first_KHE = jnp.where(kept_KE[:, None], basis, 0).astype(x.dtype)
    mean_KH = mean.astype(x.dtype)[None, None]
    parts_BTKE = jnp.einsum("BTKH,KHE->BTKE", x - mean_KH, first_KHE)
    return jnp.einsum("BTKE,KHE->BTKH", parts_BTKE, first_KHE) + mean_KH
