"""Grouped queries to MatryoshkaKV's start: bases by PCA, ranks to a byte budget.

MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection,
arXiv 2410.14731. Of each kv head, over calibration tokens,

    m = mean x,    U S U^T = mean (x - m)(x - m)^T      x rotated keys, or values

U with the largest eigenvalues first. The paper has bases of each query head, on keys
repeated for them, and so a cache of all query heads; here the queries of a group share
their kv head's. At full rank nothing changes. Below, training may move the bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxkv.convert.base import Progress, Rows, Way, convertible, weights
from jaxkv.convert.low_rank import Bases, numbers_kept, whole, with_ranks
from jaxkv.convert.rank_search import Search
from jaxkv.convert.statistics import Looked, check_tokens, statistics
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.sizes import LowRankSizes


@dataclass(frozen=True)
class MatryoshkaKV(Way):
    """How to convert; the defaults fit any model of grouped queries."""

    calibrates: ClassVar[bool] = True

    keep_bytes: float = 0.4
    """share of the bytes of keys and values that stays"""
    search: bool = True
    """find each head's ranks by what hurts least; else they are the same for all"""
    key_share: float = 0.5
    """of a head's numbers, those of its key, without a search"""
    least: float = 0.25
    """share of a head's numbers that the search leaves each key and value at least"""
    step: int | None = None
    """numbers of a head that a round of the search takes; an eighth of a head when not
    given"""
    probes: int = 2
    """rows of calibration text that the search measures on"""
    layers: tuple[int, ...] | None = None
    """those to convert, counted from 0; all when not given"""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The converted model; nothing of the given one is changed.

        Of a model that has such bases already, trained ones say, only ranks change.

        Raises:
          ValueError: the share leaves no rank or is none, there are too few tokens,
            there is no such layer, a layer has no grouped queries, or weights or what
            they give are not finite.
        """
        config = model.config
        has_bases = self._has_bases(config)
        asked = has_bases or convertible(config, self.layers, head_norms=True)
        kept = numbers_kept(config, self.keep_bytes)
        uniform = self._uniform(config.kv_heads, config.head_dim, kept)
        step = max(config.head_dim // 8, 1) if self.step is None else self.step
        if not 0 <= self.least <= 1:
            raise ValueError(f"least={self.least} is no share of a head; give 0 to 1.")
        if step < 1 or self.probes < 1:
            raise ValueError(
                f"step={step} and probes={self.probes}; the search takes 1 number and "
                "measures on 1 row at least."
            )
        if has_bases:
            full_ranks = (config.head_dim,) * config.kv_heads
            full_sizes = LowRankSizes(full_ranks, full_ranks)
            full = with_ranks(model, dict.fromkeys(asked, full_sizes))
        else:
            full = self._by_pca(model, asked, rows, progress)
        if not self.search or kept == 2 * config.head_dim:
            return with_ranks(full, dict.fromkeys(asked, uniform))
        least = max(round(self.least * config.head_dim), 1)
        search = Search.on(full, asked, rows[: self.probes])
        return with_ranks(full, search(kept, step, least, progress))

    def _has_bases(self, config: DecoderConfig) -> list[int]:
        """The layers asked for, where all have bases of rotated keys; else none."""
        asked = range(config.layers) if self.layers is None else self.layers
        sizes = [config.sizes(i) for i in asked if 0 <= i < config.layers]
        ready = [isinstance(s, LowRankSizes) and s.after_rope for s in sizes]
        return sorted(set(asked)) if all(ready) and len(ready) == len(asked) else []

    def _by_pca(
        self,
        model: Decoder,
        asked: Sequence[int],
        rows: Rows,
        progress: Progress | None,
    ) -> Decoder:
        """The model with bases of full rank in these layers."""
        H = model.config.head_dim
        check_tokens(rows, H + 1, f"covariances of a head's {H} numbers")
        for i in asked:
            weights(model.layers[i], i)  # which says where they are not finite
        found = statistics(model, rows, _moments, progress, layers=asked)
        bases = {i: _bases(found.layers[i], found.tokens) for i in asked}
        return whole(model, bases, after_rope=True)

    def _uniform(self, K: int, H: int, kept: int) -> LowRankSizes:
        if not 0 < self.key_share < 1:
            raise ValueError(
                f"key_share={self.key_share} leaves no numbers to the key or none to "
                "the value; give a share between 0 and 1."
            )
        of_key = min(max(round(kept * self.key_share), kept - H, 1), H, kept - 1)
        return LowRankSizes((of_key,) * K, (kept - of_key,) * K)


def _moments(at: Looked) -> dict[str, Array]:
    """Of each kv head, sums of its rotated keys and values and of their products."""
    made = {"key": at.k[0], "value": at.v[0]}
    sums = {name: _sum(x_SKH, at.real) for name, x_SKH in made.items()}
    products = {f"{name}s": _gram(x_SKH, at.real) for name, x_SKH in made.items()}
    return sums | products


def _sum(x: Float[Array, "S K H"], real: Bool[Array, " S"]) -> Float[Array, "K H"]:
    return jnp.where(real[:, None, None], x.astype(jnp.float32), 0).sum(axis=0)


def _gram(x: Float[Array, "S K H"], real: Bool[Array, " S"]) -> Float[Array, "K H H"]:
    x = jnp.where(real[:, None, None], x, 0).astype(jnp.float32)
    return jnp.einsum("SKH,SKI->KHI", x, x, precision=jax.lax.Precision.HIGHEST)


def _bases(sums: dict[str, np.ndarray], tokens: int) -> Bases:
    """Each head's principal directions, and the mean of its values."""

    def directions(name: str) -> tuple[np.ndarray, np.ndarray]:
        mean_KH = sums[name] / tokens
        outer_KHI = mean_KH[:, :, None] * mean_KH[:, None]
        covariance_KHI = sums[f"{name}s"] / tokens - outer_KHI
        return np.linalg.eigh(covariance_KHI)[1][..., ::-1], mean_KH

    key_KHI, _ = directions("key")
    return Bases(key_KHI, *directions("value"))
