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

from collections.abc import Callable
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
    parameters,
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

ROUNDING = 1e-5  # of norms of fp32 sums


class Trimmed(NamedTuple):
    """A layer whose keys are trimmed, and nothing else lost: s is its latent."""

    sizes: LatentSizes
    parameters: dict[str, np.ndarray]
    query: Float[np.ndarray, "N D H"]  # W_q, scaled
    to_query: Float[np.ndarray, "N H Q"]  # a head's query to one that meets latents


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
    """RMS norm of latents, which deepseek folders have; it starts as the mean of what
    latents of the calibration text are divided by, and costs much until it is trained
    with"""

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
        keys = statistics(model, rows, _key_pairs, progress, layers=asked).layers

        def trimmed(i: int, fold: int) -> Trimmed:
            turned = turn(keys[i], fold, model.config.head_dim // sizes.rope_dim)
            return _trimmed(model.config, model.layers[i], i, turned, sizes)

        def all_trimmed(fold: int) -> Statistics:
            layers = ((i, trimmed(i, fold)) for i in asked)
            made = ((i, layer.sizes, layer.parameters) for i, layer in layers)
            other = with_attention(model, made, jnp.float32)  # what is summed up
            look = _latents if self.query_rank is None else _latents_and_queries
            return statistics(other, rows, look, progress, layers=asked)

        fold, sums = self._best(model.config, sizes, all_trimmed)

        def compressed():
            for i in asked:
                whole = trimmed(i, fold)
                yield i, sizes, _compressed(whole, sums[i], sizes, self.balance)

        plain = with_attention(model, compressed())
        return _normed(plain, asked, rows, progress) if self.norm else plain

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

    def _best(
        self,
        config: DecoderConfig,
        sizes: LatentSizes,
        all_trimmed: Callable[[int], Statistics],
    ) -> tuple[int, list[Any]]:
        """The fold that is given, or of least loss, and the layers' sums with it."""
        if self.fold is not None:
            return self.fold, all_trimmed(self.fold).layers
        first, *larger = folds(config.head_dim // 2, config.head_dim // sizes.rope_dim)
        best, found = first, all_trimmed(first)
        for fold in larger:
            other = all_trimmed(fold)
            if not other.loss < found.loss:
                break
            best, found = fold, other
        return best, found.layers


def _trimmed(
    config: DecoderConfig,
    layer: Layer,
    index: int,
    turn_KHW: Float[np.ndarray, "K H W"],
    sizes: LatentSizes,
) -> Trimmed:
    """A layer with trimmed keys, all of whose keys and values are its latent."""
    K, G, H = config.kv_heads, config.group, config.head_dim
    D, rope_dim = config.width, sizes.rope_dim
    qkv_DKGH = weights(layer, index)
    key_DW = qkv_DKGH[:, :, G].reshape(D, -1) @ turn_KHW.reshape(K * H, -1)
    value_DW = qkv_DKGH[:, :, G + 1].reshape(D, -1)
    rotated_DH, still_DW = np.split(key_DW, [rope_dim], axis=1)
    R, still = 2 * K * H - rope_dim, K * H - rope_dim
    up_RKA = np.zeros((R, K, 2 * H))
    up_RKA[:still, :, :H] = turn_KHW[..., rope_dim:].transpose(2, 0, 1)
    up_RKA[still:, :, H:] = np.eye(K * H).reshape(K * H, K, H)
    same_KHH = np.broadcast_to(np.eye(H), (K, H, H))
    to_KHQ = np.concatenate([same_KHH, turn_KHW[..., :rope_dim]], axis=-1)
    to_NHQ = np.repeat(to_KHQ, G, axis=0)
    # A query meets H + rope_dim numbers, and its logits stay over sqrt(H).
    scale = np.sqrt((H + rope_dim) / H)
    query_NDH = qkv_DKGH[:, :, :G].reshape(D, K * G, H).swapaxes(0, 1) * scale
    made = {
        "down": np.concatenate([still_DW, value_DW, rotated_DH], axis=1),
        "up": np.repeat(up_RKA, G, axis=1),
        "query": (query_NDH @ to_NHQ).swapaxes(0, 1),
        "heads_out": heads_out(layer),
    }
    whole = replace(sizes, rank=R, query_rank=None)
    return Trimmed(whole, made, query_NDH, to_NHQ)


def _compressed(
    layer: Trimmed, sums: dict[str, np.ndarray], sizes: LatentSizes, balance: float
) -> dict[str, np.ndarray]:
    """The parameters with the latents, and the queries, that hold most of theirs."""
    moments_RR = sums["latents"]
    R, (N, _, H) = len(moments_RR), layer.query.shape
    still = R - (R + sizes.rope_dim) // 2  # the others are values
    down_DR, rotated_DH = np.split(layer.parameters["down"], [R], axis=1)
    scale_R = np.ones(R)
    scale_R[:still] = 1 / _ratio(moments_RR, still, balance)
    turn_RC = _strongest(moments_RR * np.outer(scale_R, scale_R), sizes.rank)
    back_CR = turn_RC.T / scale_R
    made = layer.parameters | {
        "down": np.concatenate([(down_DR * scale_R) @ turn_RC, rotated_DH], axis=1),
        "up": np.tensordot(back_CR, layer.parameters["up"], axes=1),
    }
    if sizes.query_rank is not None:
        turn_NHC = _strongest(sums["queries"], sizes.query_rank).reshape(N, H, -1)
        made["query_down"] = (layer.query @ turn_NHC).sum(axis=0)
        up_NCQ = turn_NHC.swapaxes(1, 2) @ layer.to_query
        made["query_up"] = up_NCQ.swapaxes(0, 1)
        del made["query"]
    return made


def _ratio(moments_RR: Float[np.ndarray, "R R"], keys: int, balance: float) -> float:
    """What to divide keys by: their mean norm over that of values, in balance."""
    norm_R = np.sqrt(np.diag(moments_RR))
    of_keys, of_values = norm_R[:keys].sum() / max(keys, 1), norm_R[keys:].mean()
    if min(of_keys, of_values) <= ROUNDING * max(of_keys, of_values):
        return 1.0  # what is nought but for rounding must not grow
    return float(of_keys / (of_values * balance))


def _strongest(moments: Float[np.ndarray, "W W"], count: int) -> np.ndarray:
    """[W, count]: the eigenvectors of most energy."""
    return np.linalg.eigh(moments)[1][:, ::-1][:, :count]


def _normed(
    model: Decoder, asked: list[int], rows: Rows, progress: Progress | None
) -> Decoder:
    """With norms that multiply by the mean of what they divide by."""
    seen = statistics(model, rows, _root_mean_squares, progress, layers=asked)
    layers = parameters(model)["layers"]

    def made():
        for i in asked:
            sizes = model.config.sizes(i)
            assert isinstance(sizes, LatentSizes)
            widths = {"norm": sizes.rank, "query_norm": sizes.query_rank or 0}
            norms = {
                name: {"scale": np.full(widths[name], total / seen.tokens)}
                for name, total in seen.layers[i].items()
            }
            yield i, replace(sizes, norm=True), layers[i]["attention"] | norms

    return with_attention(model, made())


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


def _latent(at: Looked) -> LatentAttention:
    assert isinstance(at.layer.attention, LatentAttention)  # of a converted model
    return at.layer.attention
