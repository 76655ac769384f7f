"""Grouped queries to latent attention by a joint SVD, to be distilled (X-EcoMLA).

X-EcoMLA: Upcycling Pre-Trained Attention into MLA, arXiv 2503.11132. In each layer

    [W_k, W_v] = A S B^T,   down = A S,   up = B^T cut to what is not rotated, and W_v
    W_r = mean_k W_k,rotated            one rotated key for all heads
    W_q = A' S' B'^T                    with a query rank; else it stays as it is

cut to the rank. A rank may be given, or found: the fewest numbers, in eights, that hold
a share of the energy sum s^2. The result is not the model, whatever the rank, because
heads share a rotated key: training is meant to follow.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxkv.convert.base import (
    Progress,
    Rows,
    Way,
    check_rank,
    convertible,
    heads_out,
    weights,
    with_attention,
)
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.sizes import LatentSizes

EIGHTS = 8  # ranks that are found are multiples of it


@dataclass(frozen=True)
class XEcoMLA(Way):
    """How to convert; the defaults fit any model of grouped queries."""

    rank: int | None = None
    """of keys and values; by the energy when not given"""
    rope_dim: int | None = None
    """numbers of the rotated key that all heads share; half a head when not given"""
    query_rank: int | None = None
    """of queries; by the query energy when not given, and whole without that too"""
    layers: tuple[int, ...] | None = None
    """those to convert, counted from 0; all when not given"""
    energy: float = 0.95
    """share of a layer's keys and values that a rank is found to hold"""
    query_energy: float | None = None
    """share of a layer's queries that a rank is found to hold"""
    norm: bool = True
    """RMS norm of latents, which deepseek folders have; it starts as what the latents'
    root mean square is if hidden states are white"""
    rotated: Literal["matching", "last"] = "matching"
    """numbers of a head that the rotated key is made of: the pairs whose frequencies
    are those of the shorter key, so that they turn as they did, or a head's last
    numbers, as the paper's code has it"""
    same_rank: bool = False
    """give every layer the largest rank found, as deepseek folders have it"""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The converted model; nothing of the given one is changed.

        Raises:
          ValueError: a rank is larger than the matrix that it is of, rope_dim is odd or
            too large, there is no such layer, a layer has no grouped queries or norms
            of single heads, or weights are not finite.
        """
        if self.same_rank:
            found = replace(self, same_rank=False)(model, rows, progress)
            return self._evened(found.config)(model, rows, progress)
        rope_dim = self._check(model.config)
        asked = convertible(model.config, self.layers)

        def made():
            for done, i in enumerate(asked):
                if progress is not None:
                    progress(done, len(asked), "layers")
                yield i, *self._layer(model.config, model.layers[i], i, rope_dim)

        return with_attention(model, made())

    def _evened(self, found: DecoderConfig) -> "XEcoMLA":
        """The conversion to the largest ranks that were found."""
        asked = range(found.layers) if self.layers is None else self.layers
        sizes = [s for i in asked if isinstance(s := found.sizes(i), LatentSizes)]
        queries = [s.query_rank for s in sizes if s.query_rank is not None]
        return replace(
            self,
            same_rank=False,
            rank=max((s.rank for s in sizes), default=None),
            query_rank=max(queries, default=None),
        )

    def _check(self, config: DecoderConfig) -> int:
        """rope_dim, once it fits."""
        H = config.head_dim
        rope_dim = H // 2 // 2 * 2 if self.rope_dim is None else self.rope_dim
        if rope_dim % 2 or not 0 < rope_dim < H:
            raise ValueError(
                f"rope_dim={rope_dim} is not an even number below the model's head_dim "
                f"of {H}; RoPE rotates pairs, and some numbers of a head stay."
            )
        if self.rotated == "matching" and H % rope_dim:
            raise ValueError(
                f"rope_dim={rope_dim} does not divide the model's head_dim of {H}, so "
                "that no pairs of a head turn as those of the rotated key; give one "
                'that does, or rotated="last".'
            )
        return rope_dim

    def _layer(
        self, config: DecoderConfig, layer: Layer, index: int, rope_dim: int
    ) -> tuple[LatentSizes, dict[str, Any]]:
        """One layer's sizes and parameters."""
        K, G, H = config.kv_heads, config.group, config.head_dim
        qkv_DKGH = weights(layer, index)
        still, turning = head_parts(H, rope_dim, self.rotated)
        found = joint_factors(qkv_DKGH[:, :, G], qkv_DKGH[:, :, G + 1])
        rank = found.rank(self.rank, self.energy, f"rank of layer {index}")
        up_RKA = found.up[:rank][..., np.concatenate([still, H + np.arange(H)])]
        rotated_DH = qkv_DKGH[:, :, G].mean(axis=1)[:, turning]
        made: dict[str, Any] = {
            "down": np.concatenate([found.down[:, :rank], rotated_DH], axis=1),
            "up": np.repeat(up_RKA, G, axis=1),  # [R, N, nope + H]
            "heads_out": heads_out(layer),
        }
        inputs_D = np.asarray(layer.attention_norm.scale[...], np.float64)
        query_DNH = qkv_DKGH[:, :, :G].reshape(-1, K * G, H)
        query_DNH = query_DNH[..., np.concatenate([still, turning])]
        query_rank, queries = self._queries(query_DNH, inputs_D, index)
        made |= queries
        if self.norm:
            made["norm"] = _norm(made["down"][:, :rank], inputs_D)
        return LatentSizes(rank, rope_dim, len(still), H, query_rank, self.norm), made

    def _queries(self, query_DNH, inputs_D, index: int) -> tuple[int | None, dict]:
        """The queries' rank and parameters."""
        if self.query_rank is None and self.query_energy is None:
            return None, {"query": query_DNH}
        found = factors(query_DNH)
        share = 1.0 if self.query_energy is None else self.query_energy
        rank = found.rank(self.query_rank, share, f"query_rank of layer {index}")
        made: dict[str, Any] = {
            "query_down": found.down[:, :rank],
            "query_up": found.up[:rank],
        }
        if self.norm:
            made["query_norm"] = _norm(made["query_down"], inputs_D)
        return rank, made


class Factors(NamedTuple):
    """A matrix as down times up, the directions of most energy first."""

    down: np.ndarray  # [D, C], A S
    up: np.ndarray  # [C, ...], B^T
    singular: np.ndarray  # [C], S

    def rank(self, asked: int | None, share: float, what: str) -> int:
        """The rank asked for, or the least that holds this share of the energy.

        Raises ValueError for one that the matrix does not have.
        """
        most = len(self.singular)
        if asked is not None:
            return check_rank(asked, most, what)
        if not 0 < share <= 1:
            raise ValueError(f"An energy of {share} is no share; give one up to 1.")
        energy = np.cumsum(np.square(self.singular))
        needed = int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1
        return min(-(-needed // EIGHTS) * EIGHTS, most)


def factors(matrix: np.ndarray) -> Factors:
    """The SVD of [D, ...], seen as a matrix with its last axes as one."""
    flat = matrix.reshape(len(matrix), -1)
    left, singular, right = np.linalg.svd(flat, full_matrices=False)
    up = right.reshape(len(singular), *matrix.shape[1:])
    return Factors(left * singular, up, singular)


def joint_factors(key_DKH: np.ndarray, value_DKH: np.ndarray) -> Factors:
    """Of keys and values side by side: up [C, K, 2 H].

    Repeating each kv head for its queries first, as the paper does, multiplies all
    singular values alike and gives the same directions.
    """
    return factors(np.concatenate([key_DKH, value_DKH], axis=-1))


def head_parts(
    head_dim: int, rope_dim: int, rotated: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers of a head are not rotated, and which are, in their new order."""
    if rotated == "last":
        turning = np.arange(head_dim - rope_dim, head_dim)
    else:
        # theta^(-2 i / rope_dim) = theta^(-2 j / head_dim) at j = i head_dim / rope_dim
        first = np.arange(rope_dim // 2) * (head_dim // rope_dim)
        turning = np.concatenate([first, first + head_dim // 2])
    return np.setdiff1d(np.arange(head_dim), turning), turning


def _norm(down_DR: np.ndarray, inputs_D: np.ndarray) -> dict[str, np.ndarray]:
    """A norm that multiplies by the latents' root mean square, of white inputs."""
    square = np.square(inputs_D[:, None] * down_DR).sum(axis=0).mean()
    return {"scale": np.full(down_DR.shape[1], np.sqrt(square))}
