"""Grouped queries to latent attention without training (TransMLA).

TransMLA: Multi-head Latent Attention Is All You Need, arXiv 2502.07864. In each layer,
with c = H / rope_dim:

    k' = turn(k)                  across heads (ro_rope.py)
    r = k'[:rope_dim]             one rotated key for all heads, by every c-th frequency
    [k'[rope_dim:] / b, v] = s    not rotated; b balances the two's norms
    s ~ s R R^T                   R the first eigenvectors of sum s s^T
    q_n = [q_n, q_n turn] sqrt((H + rope_dim) / H)

so that the latent is s R, and W_uk,n, W_uv,n are R^T times what leads back to a head.
sums are of the model whose keys are trimmed already. With every s kept nothing but the
rotation of k'[rope_dim:] is lost, and none of it where rope_dim is all there is.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkv.attention.latent import LatentAttention
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
from jaxkv.convert.ro_rope import folds, turn
from jaxkv.convert.statistics import (
    Looked,
    Statistics,
    check_tokens,
    gram,
    statistics,
)
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.frequencies import Yarn
from jaxkv.models.sizes import LatentSizes


class Whole(NamedTuple):
    """A layer whose keys are trimmed, and nothing else lost: s is its latent."""

    sizes: LatentSizes
    parameters: dict[str, np.ndarray]
    query: Float[np.ndarray, "D N H"]  # W_q, scaled
    to_query: Float[np.ndarray, "N H Q"]  # a head's query to that of its latents


@dataclass(frozen=True)
class TransMLA(Way):
    """How to convert; the defaults fit any model of grouped queries."""

    calibrates: ClassVar[bool] = True

    rank: int | None = None
    """of keys and values; a quarter of what they are when not given"""
    rope_dim: int | None = None
    """numbers of the rotated key that all heads share, which divide a head's; half a
    head when not given"""
    fold: int | None = None
    """adjacent frequencies taken for one; when not given, doubled for as long as the
    loss on the calibration text falls"""
    query_rank: int | None = None
    """of queries; they stay whole when not given"""
    balance: float = 1.0
    """keys' norms over values', as the two are compressed together"""
    layers: tuple[int, ...] | None = None
    """those to convert, counted from 0; all when not given"""
    norm: bool = True
    """RMS norm of latents, which deepseek folders have; it starts near nothing, as the
    mean of what latents of the calibration text are divided by"""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The converted model; nothing of the given one is changed.

        Raises:
          ValueError: a rank is larger than the matrix that it is of, rope_dim or fold
            does not divide what it has to, there are too few tokens, there is no such
            layer, a layer has no grouped queries or norms of single heads, RoPE is
            YaRN's, or weights or what they give are not finite.
        """
        asked = convertible(model.config, self.layers)
        sizes = self._sizes(model.config, rows)
        trimmed, found = self._trimmed(model, rows, progress, asked, sizes)
        made = {}
        for i, whole in trimmed.items():
            made[i] = _compressed(whole, found.layers[i], sizes, self.balance)
        if not self.norm:
            return with_attention(model, made)
        plain = with_attention(model, made)
        seen = statistics(plain, rows, _root_mean_squares, progress, layers=asked)
        for i, (_, attention) in made.items():
            norms = _norms(sizes, seen.layers[i], seen.tokens)
            made[i] = replace(sizes, norm=True), attention | norms
        return with_attention(model, made)

    def _sizes(self, config: DecoderConfig, rows: Rows) -> LatentSizes:
        """What each layer's are to be, without a norm, once all of them fit."""
        K, H, N = config.kv_heads, config.head_dim, config.query_heads
        rope_dim = self.rope_dim
        if rope_dim is None:
            shorter = range(H // 2, 1, -1)
            rope_dim = next((d for d in shorter if H % d == 0 and d % 2 == 0), H)
        if rope_dim < 2 or rope_dim % 2 or H % rope_dim:
            raise ValueError(
                f"rope_dim={rope_dim} is not an even divisor of the model's head_dim "
                f"of {H}; RoPE rotates pairs, and keeps every so many frequencies."
            )
        self._check_fold(H // 2, H // rope_dim)
        if isinstance(config.rope_scaling, Yarn):
            raise ValueError(
                "The model's RoPE is stretched as YaRN has it, which a shorter rotated "
                "key would be in another way; convert a model without."
            )
        if not self.balance > 0:
            raise ValueError(f"balance={self.balance}; give a ratio above 0.")
        width = 2 * K * H - rope_dim
        rank = min(K * H // 2, config.width) if self.rank is None else self.rank
        check_rank(rank, min(width, config.width), "rank of each layer")
        check_tokens(rows, width, f"covariances of {width} keys and values")
        if self.query_rank is not None:
            most = min(N * H, config.width)
            check_rank(self.query_rank, most, "query_rank of each layer")
            check_tokens(rows, N * H, f"covariances of {N * H} queries")
        return LatentSizes(rank, rope_dim, H, H, self.query_rank, norm=False)

    def _check_fold(self, pairs: int, collapse: int) -> None:
        fold = self.fold
        if fold is not None and (fold < 1 or fold % collapse or pairs % fold):
            fit = [f for f in range(collapse, pairs + 1, collapse) if pairs % f == 0]
            raise ValueError(
                f"fold={fold} is not a multiple of {collapse}, head_dim over rope_dim, "
                f"that divides the {pairs} frequencies of a head; give one of "
                f"{', '.join(map(str, fit))}."
            )

    def _trimmed(
        self,
        model: Decoder,
        rows: Rows,
        progress: Progress | None,
        asked: list[int],
        sizes: LatentSizes,
    ) -> tuple[dict[int, Whole], Statistics]:
        """The layers with trimmed keys, of the fold of least loss, and their sums."""
        keys = statistics(model, rows, _key_pairs, progress, layers=asked)
        collapse = model.config.head_dim // sizes.rope_dim
        tried = folds(model.config.head_dim // 2, collapse)
        look = _latents if sizes.query_rank is None else _latents_and_queries
        best: tuple[dict[int, Whole], Statistics] | None = None
        for fold in tried if self.fold is None else [self.fold]:
            layers = {}
            for i in asked:
                turned = turn(keys.layers[i], fold, collapse)
                layers[i] = _whole(model.config, model.layers[i], i, turned, sizes)
            made = {i: (w.sizes, w.parameters) for i, w in layers.items()}
            trimmed = with_attention(model, made)
            found = statistics(trimmed, rows, look, progress, layers=asked)
            if best is not None and found.loss >= best[1].loss:
                break
            best = layers, found
        assert best is not None
        return best


def _whole(
    config: DecoderConfig,
    layer: Layer,
    index: int,
    turn_KHW: Float[np.ndarray, "K H W"],
    sizes: LatentSizes,
) -> Whole:
    """A layer with trimmed keys, all of whose keys and values are its latent."""
    K, G, H = turn_KHW.shape[0], config.group, turn_KHW.shape[1]
    qkv_DKGH = weights(layer, index)
    key_DW = np.einsum("DKH,KHW->DW", qkv_DKGH[:, :, G], turn_KHW)
    rotated_DH, still_DW = np.split(key_DW, [sizes.rope_dim], axis=1)
    value_DW = qkv_DKGH[:, :, G + 1].reshape(len(key_DW), -1)
    back_KHW = turn_KHW[..., sizes.rope_dim :]
    R, still = 2 * K * H - sizes.rope_dim, back_KHW.shape[-1]
    up_RKA = np.zeros((R, K, 2 * H))
    up_RKA[:still, :, :H] = back_KHW.transpose(2, 0, 1)
    up_RKA[still:, :, H:] = np.eye(K * H).reshape(K * H, K, H)
    same_KHH = np.broadcast_to(np.eye(H), (K, H, H))
    to_KHQ = np.concatenate([same_KHH, turn_KHW[..., : sizes.rope_dim]], axis=-1)
    to_NHQ = np.repeat(to_KHQ, G, axis=0)
    # A query meets H + rope_dim numbers, and its logits stay over sqrt(H).
    scale = np.sqrt((H + sizes.rope_dim) / H)
    query_DNH = qkv_DKGH[:, :, :G].reshape(len(key_DW), K * G, H) * scale
    parameters = {
        "down": np.concatenate([still_DW, value_DW, rotated_DH], axis=1),
        "up": np.repeat(up_RKA, G, axis=1),
        "query": np.einsum("DNH,NHQ->DNQ", query_DNH, to_NHQ),
        "heads_out": heads_out(layer),
    }
    whole = replace(sizes, rank=R, query_rank=None)
    return Whole(whole, parameters, query_DNH, to_NHQ)


def _compressed(
    whole: Whole, sums: dict[str, np.ndarray], sizes: LatentSizes, balance: float
) -> tuple[LatentSizes, dict[str, Any]]:
    """The layer with the latents, and the queries, that hold most of theirs."""
    moments_RR = sums["latents"]
    R, H = len(moments_RR), sizes.nope_dim
    down_DR, rotated_DH = np.split(whole.parameters["down"], [R], axis=1)
    K = (R + sizes.rope_dim) // (2 * H)
    scale_R = np.ones(R)
    scale_R[: R - K * H] = 1 / _ratio(moments_RR, R - K * H, balance)
    turn_RC = _strongest(moments_RR * np.outer(scale_R, scale_R), sizes.rank)
    back_CR = turn_RC.T / scale_R
    made: dict[str, Any] = whole.parameters | {
        "down": np.concatenate([(down_DR * scale_R) @ turn_RC, rotated_DH], axis=1),
        "up": np.einsum("CR,RNA->CNA", back_CR, whole.parameters["up"]),
    }
    if sizes.query_rank is not None:
        D, N, H = whole.query.shape
        turn_XC = _strongest(sums["queries"], sizes.query_rank)
        turn_NHC = turn_XC.reshape(N, H, -1)
        made["query_down"] = whole.query.reshape(D, -1) @ turn_XC
        made["query_up"] = np.einsum("NHC,NHQ->CNQ", turn_NHC, whole.to_query)
        del made["query"]
    return sizes, made


def _ratio(moments_RR: Float[np.ndarray, "R R"], keys: int, balance: float) -> float:
    """What to divide keys by: their mean norm over that of values, in balance."""
    norm_R = np.sqrt(np.diag(moments_RR))
    if not norm_R[:keys].any() or not norm_R[keys:].any():
        return 1.0  # nothing to balance
    return float(norm_R[:keys].mean() / (norm_R[keys:].mean() * balance))


def _strongest(moments: Float[np.ndarray, "W W"], count: int) -> np.ndarray:
    """[W, count]: the eigenvectors of most energy."""
    return np.linalg.eigh(moments)[1][:, ::-1][:, :count]


def _key_pairs(at: Looked) -> Float[Array, "K P K P"]:
    """Second moments of unrotated keys over heads and pairs; both numbers count."""
    _, k_1SKH, _ = at.before_rope()
    _, S, K, H = k_1SKH.shape
    k_SKAP = k_1SKH.reshape(S, K, 2, H // 2)
    first, second = (gram(k_SKAP[:, :, a].reshape(S, -1), at.real) for a in (0, 1))
    return (first + second).reshape(K, H // 2, K, H // 2)


def _latents(at: Looked) -> dict[str, Array]:
    rank = _latent(at).sizes.rank
    return {"latents": gram(at.k[0, :, 0, :rank], at.real)}


def _latents_and_queries(at: Looked) -> dict[str, Array]:
    q_SNQ = at.q[0, :, :, : _latent(at).sizes.nope_dim]
    return _latents(at) | {"queries": gram(q_SNQ.reshape(len(q_SNQ), -1), at.real)}


def _root_mean_squares(at: Looked) -> dict[str, Float[Array, ""]]:
    """Sums of each token's, by the name of the norm that is to divide by it."""
    attention = _latent(at)
    latents = {"norm": at.k[0, :, 0, : attention.sizes.rank]}
    if attention.sizes.query_rank is not None:
        h_SD = at.layer.attention_norm(at.x)[0]
        latents["query_norm"] = jnp.einsum("SD,DC->SC", h_SD, attention.query_down[...])

    def total(x_SR):
        square_S = jnp.mean(jnp.square(x_SR.astype(jnp.float32)), axis=-1)
        return jnp.where(at.real, jnp.sqrt(square_S), 0.0).sum()

    return {name: total(x) for name, x in latents.items()}


def _norms(
    sizes: LatentSizes, totals: dict[str, np.ndarray], tokens: int
) -> dict[str, dict[str, np.ndarray]]:
    """Norms that multiply by the mean of what they divide by."""
    widths = {"norm": sizes.rank, "query_norm": sizes.query_rank or 0}
    return {
        name: {"scale": np.full(widths[name], total / tokens)}
        for name, total in totals.items()
    }


def _latent(at: Looked) -> LatentAttention:
    assert isinstance(at.layer.attention, LatentAttention)  # of a converted model
    return at.layer.attention
