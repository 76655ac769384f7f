"""Which Hugging Face tensors make up each parameter of a Decoder, and how.

torch stores a linear map as [out, in], one matrix a projection; a Decoder stores it as
[in, out], with q, k, v fused by kv head and gate beside up. Latent attention has
DeepSeek's tensors. Those rotate neighbouring numbers (2i, 2i + 1) and a Decoder rotates
halves (i, i + size/2), so that the rotated rows are dealt anew. Convolutional attention
has the projections' names of grouped queries, and its other parameters as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import ConvolutionalSizes, LatentSizes, LowRankSizes


@dataclass(frozen=True)
class Weight:
    """One of our parameters: the tensors it is made of, and how.

    `shapes` are the tensors' own, in letters of `sizes_of`. `axes` says which axis of
    the parameter each axis of the tensors runs along, so that a part of the one is made
    of parts of the others. Both functions take a config that has no other layer.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    axes: tuple[int, ...]
    fuse: Callable[..., Any]
    split: Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Placed:
    """A parameter of a model: its tensors' whole names and shapes, and how."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    weight: Weight
    config: DecoderConfig  # of its layer alone


def _kv_heads(config: DecoderConfig) -> tuple[int, int]:
    """K and H of a layer's projections, whatever of them it caches."""
    own = config.sizes(0)
    if isinstance(own, ConvolutionalSizes):
        return own.kv_heads, own.head_dim
    return config.kv_heads, config.head_dim


def _fuse_qkv(config, q, k, v):
    K, H = _kv_heads(config)
    parts = [part.reshape(K, -1, H, config.width) for part in (q, k, v)]
    return jnp.concatenate(parts, axis=1).transpose(3, 0, 1, 2)


def _split_qkv(config, qkv_DKGH):
    G, D = qkv_DKGH.shape[2] - 2, config.width
    qkv_KGHD = qkv_DKGH.transpose(1, 2, 3, 0)
    parts = qkv_KGHD[:, :G], qkv_KGHD[:, G], qkv_KGHD[:, G + 1]
    return tuple(part.reshape(-1, D) for part in parts)


def _fuse_out(config, out):
    K, H = _kv_heads(config)
    return out.reshape(config.width, K, -1, H).transpose(1, 2, 3, 0)


def _split_out(config, out_KGHD):
    return (out_KGHD.transpose(3, 0, 1, 2).reshape(config.width, -1),)


def _fuse_gate_up(_, gate, up):
    return jnp.stack([gate.T, up.T], axis=1)


def _split_gate_up(_, both_DIF):
    return both_DIF[:, 0].T, both_DIF[:, 1].T


def _fuse_transposed(_, down):
    return down.T


def _split_transposed(_, down):
    return (down.T,)


def _fuse_same(_, tensor):
    return tensor


def _split_same(_, array):
    return (array,)


def _in_halves(still: int, rotated: int) -> np.ndarray:
    """Where each of our rows stands among theirs: `still` rows, then rotated pairs."""
    pairs = still + np.arange(rotated).reshape(-1, 2)
    return np.concatenate([np.arange(still), pairs.T.reshape(-1)])


def _fuse_query(config, query):
    """[N * Q, in] to [in, N, Q]."""
    latent = _latent(config)
    query_NQD = query.reshape(config.query_heads, -1, query.shape[-1])
    rows = _in_halves(latent.nope_dim, latent.rope_dim)
    return query_NQD[:, rows].transpose(2, 0, 1)


def _split_query(config, query_DNQ):
    latent = _latent(config)
    rows = np.argsort(_in_halves(latent.nope_dim, latent.rope_dim))
    query_NQD = query_DNQ[..., rows].transpose(1, 2, 0)
    return (query_NQD.reshape(-1, query_NQD.shape[-1]),)


def _fuse_down(config, down):
    latent = _latent(config)
    return down[_in_halves(latent.rank, latent.rope_dim)].T


def _split_down(config, down_DH):
    latent = _latent(config)
    return (down_DH.T[np.argsort(_in_halves(latent.rank, latent.rope_dim))],)


def _fuse_up(config, up):
    return up.reshape(config.query_heads, -1, up.shape[-1]).transpose(2, 0, 1)


def _split_up(_, up_RNA):
    return (up_RNA.reshape(up_RNA.shape[0], -1).T,)


def _fuse_heads_out(config, out):
    return out.T.reshape(config.query_heads, -1, config.width)


def _split_heads_out(config, out_NUD):
    return (out_NUD.reshape(-1, config.width).T,)


def _latent(config: DecoderConfig) -> LatentSizes:
    sizes = config.sizes(0)
    assert isinstance(sizes, LatentSizes)
    return sizes


def _same(name: str, *shape: str) -> Weight:
    axes = tuple(range(len(shape)))
    return Weight((name,), (shape,), axes, _fuse_same, _split_same)


def _one(name: str, shape: tuple[str, ...], axes, fuse, split) -> Weight:
    return Weight((name,), (shape,), axes, fuse, split)


LAYER = {
    ("attention_norm", "scale"): _same("input_layernorm.weight", "D"),
    ("mlp_norm", "scale"): _same("post_attention_layernorm.weight", "D"),
    ("mlp", "gate_up"): Weight(
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        (("F", "D"), ("F", "D")),
        (2, 0),
        _fuse_gate_up,
        _split_gate_up,
    ),
    ("mlp", "down"): _one(
        "mlp.down_proj.weight", ("D", "F"), (1, 0), _fuse_transposed, _split_transposed
    ),
}
GROUPED = {
    ("attention", "qkv"): Weight(
        tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv"),
        (("NH", "D"), ("KH", "D"), ("KH", "D")),
        (1, 0),
        _fuse_qkv,
        _split_qkv,
    ),
    ("attention", "out"): _one(
        "self_attn.o_proj.weight", ("D", "NH"), (3, 0), _fuse_out, _split_out
    ),
}
QK_NORM = {
    ("attention", "q_norm", "scale"): _same("self_attn.q_norm.weight", "H"),
    ("attention", "k_norm", "scale"): _same("self_attn.k_norm.weight", "H"),
}
LOW_RANK = {
    ("attention", "key_basis"): _same("self_attn.key_basis", "A", "H", "H"),
    ("attention", "value_basis"): _same("self_attn.value_basis", "K", "H", "H"),
    ("attention", "value_mean"): _same("self_attn.value_mean", "K", "H"),
}
CONVOLUTIONAL = {
    ("attention", name): _same(f"self_attn.{name}", *shape)
    for name, shape in {
        "channels": ("I", "K", "X", "H"),
        "channels_bias": ("KXH",),
        "heads": ("Z", "K", "X", "H", "H"),
        "heads_bias": ("KXH",),
        "temperature": ("K",),
    }.items()
}
LATENT = {
    ("attention", "down"): _one(
        "self_attn.kv_a_proj_with_mqa.weight",
        ("E", "D"),
        (1, 0),
        _fuse_down,
        _split_down,
    ),
    ("attention", "up"): _one(
        "self_attn.kv_b_proj.weight", ("NA", "R"), (1, 0), _fuse_up, _split_up
    ),
    ("attention", "heads_out"): _one(
        "self_attn.o_proj.weight",
        ("D", "NU"),
        (2, 0),
        _fuse_heads_out,
        _split_heads_out,
    ),
}
LATENT_NORM = {
    ("attention", "norm", "scale"): _same("self_attn.kv_a_layernorm.weight", "R"),
}
QUERY = {
    ("attention", "query"): _one(
        "self_attn.q_proj.weight", ("NQ", "D"), (1, 0), _fuse_query, _split_query
    ),
}
QUERY_RANK = {
    ("attention", "query_down"): _one(
        "self_attn.q_a_proj.weight",
        ("C", "D"),
        (1, 0),
        _fuse_transposed,
        _split_transposed,
    ),
    ("attention", "query_up"): _one(
        "self_attn.q_b_proj.weight", ("NQ", "C"), (1, 0), _fuse_query, _split_query
    ),
}
QUERY_NORM = {
    ("attention", "query_norm", "scale"): _same("self_attn.q_a_layernorm.weight", "C"),
}
ENDS = {
    ("table",): _same("model.embed_tokens.weight", "V", "D"),
    ("norm", "scale"): _same("model.norm.weight", "D"),
}
HEAD = {("head",): _same("lm_head.weight", "V", "D")}


def model_weights(config: DecoderConfig) -> dict[tuple[str | int, ...], Placed]:
    """Every parameter of the model, by its path in the module."""
    ends = ENDS | ({} if config.tie_embeddings else HEAD)
    found: dict = {path: _placed(weight, "", config) for path, weight in ends.items()}
    for i in range(config.layers):
        layer = config.only(i)
        for path, weight in _layer_weights(layer).items():
            found["layers", i, *path] = _placed(weight, f"model.layers.{i}.", layer)
    return found


def _layer_weights(config: DecoderConfig) -> dict[Any, Weight]:
    """Those of a decoder's only layer."""
    match config.sizes(0):
        case LatentSizes() as latent:
            return LAYER | _latent_weights(latent)
        case LowRankSizes():
            within = {
                ("attention", "grouped", *path[1:]): weight
                for path, weight in _grouped_weights(config).items()
            }
            return LAYER | within | LOW_RANK
        case ConvolutionalSizes():
            return LAYER | GROUPED | CONVOLUTIONAL
        case _:
            return LAYER | _grouped_weights(config)


def _grouped_weights(config: DecoderConfig) -> dict[Any, Weight]:
    return GROUPED | (QK_NORM if config.qk_norm else {})


def _latent_weights(sizes: LatentSizes) -> dict[Any, Weight]:
    found: dict = LATENT | (QUERY if sizes.query_rank is None else QUERY_RANK)
    if sizes.norm:
        found |= LATENT_NORM | ({} if sizes.query_rank is None else QUERY_NORM)
    return found


def _placed(weight: Weight, before: str, config: DecoderConfig) -> Placed:
    sizes = sizes_of(config)
    names = tuple(before + name for name in weight.names)
    shapes = tuple(tuple(sizes[size] for size in shape) for shape in weight.shapes)
    return Placed(names, shapes, weight, config)


def sizes_of(config: DecoderConfig) -> Mapping[str, int]:
    """The letters of tensors' shapes, "NH" being N * H, where a layer stands alone."""
    N, K, H = config.query_heads, config.kv_heads, config.head_dim
    sizes = {"V": config.vocabulary, "D": config.width, "F": config.feed_forward}
    match config.sizes(0) if config.layers else None:
        case LatentSizes() as latent:
            return sizes | {
                "R": latent.rank,
                "E": latent.entry,
                "C": latent.query_rank or 0,
                "NQ": N * (latent.nope_dim + latent.rope_dim),
                "NA": N * (latent.nope_dim + latent.value_dim),
                "NU": N * latent.value_dim,
            }
        case LowRankSizes() as ranks:
            sizes |= {"K": K, "A": ranks.key_bases}
        case ConvolutionalSizes() as own:
            N, K, H = own.query_heads, own.kv_heads, own.head_dim
            X = N // K + 1
            sizes |= {"I": own.channel_kernel, "Z": own.head_kernel}
            sizes |= {"K": K, "X": X, "KXH": K * X * H}
    return sizes | {"H": H, "NH": N * H, "KH": K * H}
