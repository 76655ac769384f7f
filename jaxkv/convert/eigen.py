"""Grouped queries to Eigen Attention: bases by SVD, ranks by an error budget.

Eigen Attention: Attention in Low-Rank Space for KV Cache Compression,
arXiv 2408.05646, as its code does it for models with RoPE. Over calibration tokens,

    U_k of a layer        right singular vectors of all its kv heads' keys, not rotated
    U_v of a kv head      of the head's values
    rank(t)               singular values s (not squared) whose running sum is below
                          t sum s; the highest of the heads for values

A layer's threshold t goes down by `step` from 1 for as long as what leaves the layer,
given what enters the original one, stays within the error budget,

    ||y' - y|| / ||y|| <= error       over all tokens, in the Frobenius norm

and no rank falls below `least` of a head. The last threshold that did so is taken. At
full rank nothing changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.convert.base import (
    Progress,
    Rows,
    Way,
    check_rank,
    convertible,
    in_fp32,
    weights,
)
from jaxkv.convert.low_rank import Bases, numbers_kept, through, whole, with_ranks
from jaxkv.convert.statistics import check_tokens
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.sizes import LowRankSizes
from jaxkv.prompts import pad


@dataclass(frozen=True)
class EigenAttention(Way):
    """How to convert; the defaults fit any model of grouped queries."""

    calibrates: ClassVar[bool] = True

    error: float = 0.025
    """of what leaves a layer, as a share, that its ranks may cost"""
    step: float = 0.02
    """by which a layer's threshold goes down"""
    least: float = 0.45
    """of a head's numbers that a rank found by the error has at least"""
    keep_bytes: float | None = None
    """share of the bytes of keys and values that stays, by one threshold for all
    layers, instead of an error"""
    key_rank: int | None = None
    """of every layer, instead of an error; with a value rank"""
    value_rank: int | None = None
    """of every layer, instead of an error; with a key rank"""
    average: int = 1
    """rows of calibration text whose keys and values are averaged, token by token,
    before their SVD; the paper's code does so to save memory"""
    layers: tuple[int, ...] | None = None
    """those to convert, counted from 0; all when not given"""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The converted model; nothing of the given one is changed.

        Raises:
          ValueError: ranks are larger than a head or given with a share, there are too
            few tokens, there is no such layer, a layer has no grouped queries, or
            weights or what they give are not finite.
        """
        config = model.config
        asked = convertible(config, self.layers, head_norms=True)
        self._check(config, rows)
        for i in asked:
            weights(model.layers[i], i)  # which says where they are not finite
        found = {}
        for i, layer, x, real in _walk(model, rows):
            if progress is not None:
                progress(i, config.layers, "layers")
            if i in asked:
                found[i] = _spectrum(layer, x, real, self.average, i)
        bases = {i: spectrum.bases for i, spectrum in found.items()}
        full = whole(model, bases, after_rope=False)
        ranks = self._ranks(model, full, found, rows, progress)
        K = config.kv_heads
        sizes = {
            i: LowRankSizes((k,) * K, (v,) * K, after_rope=False)
            for i, (k, v) in ranks.items()
        }
        return with_ranks(full, sizes)

    def _check(self, config: DecoderConfig, rows: Rows) -> None:
        H = config.head_dim
        given = [rank for rank in (self.key_rank, self.value_rank) if rank is not None]
        if len(given) == 1 or (given and self.keep_bytes is not None):
            raise ValueError(
                "A key rank goes with a value rank and with no share of bytes; give "
                "both ranks, or keep_bytes, or neither."
            )
        for rank in given:
            check_rank(rank, H, "rank of each head")
        if self.keep_bytes is not None:
            numbers_kept(config, self.keep_bytes)
        if not self.error > 0 or not 0 < self.step < 1 or not 0 <= self.least <= 1:
            raise ValueError(
                f"error={self.error}, step={self.step}, least={self.least}: give an "
                "error above 0, a step between 0 and 1, and a share up to 1."
            )
        if self.average < 1:
            raise ValueError(f"average={self.average}; 1 averages nothing.")
        # Averaged, so many rows give as many features as one.
        what = f"singular vectors of a head's {H} numbers"
        if self.average > 1:
            what += f", where {self.average} rows are averaged"
        check_tokens(rows, H * self.average, what)

    def _ranks(
        self,
        model: Decoder,
        full: Decoder,
        found: dict[int, "Spectrum"],
        rows: Rows,
        progress: Progress | None,
    ) -> dict[int, tuple[int, int]]:
        """Each layer's key rank and value rank."""
        if self.key_rank is not None and self.value_rank is not None:
            return dict.fromkeys(found, (self.key_rank, self.value_rank))
        if self.keep_bytes is not None:
            kept = self.keep_bytes * 2 * model.config.head_dim * len(found)
            return _within(found, kept)
        ranks = {}
        for i, layer, x, real in _walk(model, rows):
            if progress is not None:
                progress(i, model.config.layers, "ranks")
            if i in found:
                ranks[i] = self._of_layer(layer, full.layers[i], x, real, found[i])
        return ranks

    def _of_layer(
        self,
        layer: Layer,
        low: Layer,
        x: list[Array],
        real: list[Array],
        spectrum: "Spectrum",
    ) -> tuple[int, int]:
        """The lowest ranks of a layer that its error budget allows."""
        H, K = len(spectrum.key), len(spectrum.value)
        right = _leaves(layer, x)
        taken, threshold = (H, H), 1.0
        while True:
            threshold -= self.step
            ranks = spectrum.ranks(threshold)
            if min(ranks) < max(self.least * H, 1):
                return taken
            keys, values = (jnp.full((K,), rank, jnp.int32) for rank in ranks)
            errors = [
                _error(through(low, row, keys, values), left, mask)
                for row, left, mask in zip(x, right, real, strict=True)
            ]
            moved, of = np.sum(np.array(errors, np.float64), axis=0)
            if moved > self.error**2 * of:
                return taken
            taken = ranks


class Spectrum(NamedTuple):
    """One layer's bases, and how much each direction holds: singular values."""

    bases: Bases
    key: Float[np.ndarray, " H"]
    value: Float[np.ndarray, "K H"]

    def ranks(self, threshold: float) -> tuple[int, int]:
        """Of keys and of values, one at least; those of values of the neediest head."""

        def rank(s_H: np.ndarray) -> int:
            held = np.cumsum(s_H) / max(s_H.sum(), np.finfo(float).tiny)
            return max(int((held < threshold).sum()), 1)

        return rank(self.key), max(map(rank, self.value))


def _within(found: dict[int, Spectrum], kept: float) -> dict[int, tuple[int, int]]:
    """Ranks of the highest threshold at which the layers keep so many numbers a head.

    Those of one number each, where no threshold leaves as few.
    """
    H = len(next(iter(found.values())).key)
    if kept >= 2 * H * len(found):
        return dict.fromkeys(found, (H, H))
    low, high = 0.0, 1.0
    for _ in range(40):  # halvings of what thresholds may be
        middle = (low + high) / 2
        ranks = [spectrum.ranks(middle) for spectrum in found.values()]
        low, high = (middle, high) if np.sum(ranks) <= kept else (low, middle)
    return {i: spectrum.ranks(low) for i, spectrum in found.items()}


def _walk(
    model: Decoder, rows: Rows
) -> Iterator[tuple[int, Layer, list[Array], list[Bool[Array, " S"]]]]:
    """Layer after layer, what enters it of every row in the original model."""
    config = model.config
    if not len(rows):
        raise ValueError("There are no tokens to calibrate with; give some text.")
    prompts = pad(
        [list(row) for row in rows], config.vocabulary, config.max_position, smallest=8
    )
    at = np.arange(prompts.token_ids.shape[1])
    real = [jnp.asarray(at < n) for n in prompts.lengths]
    embedded = (model.embed(jnp.asarray(ids)[None]) for ids in prompts.token_ids)
    x = [row.astype(jnp.float32) for row in embedded]
    for i, layer in enumerate(model.layers):
        yield i, layer, x, real
        x = _leaves(layer, x)


def _leaves(layer: Layer, x: Sequence[Array]) -> list[Array]:
    return [_one_row(layer, row) for row in x]


@jax.jit
def _one_row(layer: Layer, x: Float[Array, "1 S D"]) -> Float[Array, "1 S D"]:
    position = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    return in_fp32(layer)(x, position)


def _spectrum(
    layer: Layer, x: list[Array], real: list[Array], average: int, index: int
) -> Spectrum:
    """Singular values and vectors of features, from the sums of their products."""
    key = value = np.zeros(())
    for first in range(0, len(x), average):
        some = slice(first, first + average)
        keys, values = _products(layer, tuple(x[some]), tuple(real[some]))
        key = key + np.asarray(keys, np.float64)
        value = value + np.asarray(values, np.float64)
    if not (np.isfinite(key).all() and np.isfinite(value).all()):
        raise ValueError(
            f"Layer {index} gives values that are not finite for calibration text; use "
            "another checkpoint, or float32."
        )
    key_s, key_basis = _singular(key)
    value_s, value_basis = _singular(value)
    nothing = np.zeros(value_s.shape)  # features are as they are, with their mean
    return Spectrum(Bases(key_basis[None], value_basis, nothing), key_s, value_s)


@jax.jit
def _products(
    layer: Layer, x: tuple[Array, ...], real: tuple[Array, ...]
) -> tuple[Float[Array, "H H"], Float[Array, "K H H"]]:
    """Sums of k k^T over heads, and of v v^T, of some rows averaged token by token."""
    layer = in_fp32(layer)
    attention = layer.attention
    assert isinstance(attention, GroupedQuery)  # `convertible` has seen to it
    sums: list[Array] = [jnp.zeros(()), jnp.zeros(())]
    count = jnp.zeros((), jnp.float32)
    for row, mask in zip(x, real, strict=True):
        _, k, v = attention.before_rope(layer.attention_norm(row))
        kept = mask[:, None, None]
        for n, feature in enumerate((k[0], v[0])):
            sums[n] = sums[n] + jnp.where(kept, feature.astype(jnp.float32), 0)
        count = count + mask.astype(jnp.float32)
    k_SKH, v_SKH = (s / jnp.maximum(count, 1)[:, None, None] for s in sums)
    exact = jax.lax.Precision.HIGHEST
    return (
        jnp.einsum("SKH,SKI->HI", k_SKH, k_SKH, precision=exact),
        jnp.einsum("SKH,SKI->KHI", v_SKH, v_SKH, precision=exact),
    )


def _singular(products: Float[np.ndarray, "*A H H"]) -> tuple[np.ndarray, np.ndarray]:
    """Of features whose products summed up to these, the largest first."""
    squares, vectors = np.linalg.eigh(products)
    return np.sqrt(np.maximum(squares, 0))[..., ::-1], vectors[..., ::-1]


@jax.jit
def _error(
    found: Float[Array, "1 S D"], right: Float[Array, "1 S D"], real: Bool[Array, " S"]
) -> Float[Array, "2"]:
    """Squares of what differs and of what should be, over real tokens."""

    def square(x):
        x = jnp.where(real[None, :, None], x.astype(jnp.float32), 0)
        return jnp.square(x).sum()

    return jnp.stack([square(found - right), square(right)])
