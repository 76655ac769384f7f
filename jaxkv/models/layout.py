"""Which Hugging Face tensors make up each parameter of a Decoder, and how.

torch stores a linear map as [out, in], one matrix a projection; a Decoder stores it as
[in, out], with q, k, v fused by kv head and gate beside up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxkv.models.config import DecoderConfig


@dataclass(frozen=True)
class Weight:
    """One of our parameters: the tensors it is made of, and how.

    `shapes` are the tensors' own, in letters of jaxkv/dims.py; "NH" is N * H. `axes`
    says which axis of the parameter each axis of the tensors runs along, so that a part
    of the one is made of parts of the others.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    axes: tuple[int, ...]
    fuse: Callable[..., Any]
    split: Callable[..., tuple[Any, ...]]


def _fuse_qkv(config, q, k, v):
    K, H, D = config.kv_heads, config.head_dim, config.width
    parts = [part.reshape(K, -1, H, D) for part in (q, k, v)]
    return jnp.concatenate(parts, axis=1).transpose(3, 0, 1, 2)


def _split_qkv(config, qkv_DKGH):
    G, D = config.group, config.width
    qkv_KGHD = qkv_DKGH.transpose(1, 2, 3, 0)
    parts = qkv_KGHD[:, :G], qkv_KGHD[:, G], qkv_KGHD[:, G + 1]
    return tuple(part.reshape(-1, D) for part in parts)


def _fuse_out(config, out):
    shape = (config.width, config.kv_heads, config.group, config.head_dim)
    return out.reshape(shape).transpose(1, 2, 3, 0)


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


def _same(name: str, *shape: str) -> Weight:
    axes = tuple(range(len(shape)))
    return Weight((name,), (shape,), axes, _fuse_same, _split_same)


LAYER = {
    ("attention_norm", "scale"): _same("input_layernorm.weight", "D"),
    ("attention", "qkv"): Weight(
        tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv"),
        (("NH", "D"), ("KH", "D"), ("KH", "D")),
        (1, 0),
        _fuse_qkv,
        _split_qkv,
    ),
    ("attention", "out"): Weight(
        ("self_attn.o_proj.weight",), (("D", "NH"),), (3, 0), _fuse_out, _split_out
    ),
    ("mlp_norm", "scale"): _same("post_attention_layernorm.weight", "D"),
    ("mlp", "gate_up"): Weight(
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        (("F", "D"), ("F", "D")),
        (2, 0),
        _fuse_gate_up,
        _split_gate_up,
    ),
    ("mlp", "down"): Weight(
        ("mlp.down_proj.weight",),
        (("D", "F"),),
        (1, 0),
        _fuse_transposed,
        _split_transposed,
    ),
}
QK_NORM = {
    ("attention", "q_norm", "scale"): _same("self_attn.q_norm.weight", "H"),
    ("attention", "k_norm", "scale"): _same("self_attn.k_norm.weight", "H"),
}
ENDS = {
    ("table",): _same("model.embed_tokens.weight", "V", "D"),
    ("norm", "scale"): _same("model.norm.weight", "D"),
}
HEAD = {("head",): _same("lm_head.weight", "V", "D")}


def model_weights(config: DecoderConfig) -> dict[tuple[str | int, ...], Weight]:
    """Every parameter of the model, by its path in the module."""
    layer = LAYER | (QK_NORM if config.qk_norm else {})
    found: dict = ENDS | ({} if config.tie_embeddings else HEAD)
    for i in range(config.layers):
        for place, weight in layer.items():
            names = tuple(f"model.layers.{i}.{name}" for name in weight.names)
            found["layers", i, *place] = replace(weight, names=names)
    return found
