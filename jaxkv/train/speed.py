"""Model FLOP utilisation and memory: what training makes of the hardware."""

from collections.abc import Iterable, Mapping

import jax

from jaxkv.models.config import DecoderConfig
from jaxkv.params import Params

PEAK_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
}
"""Dense 16-bit FLOP/s of one device, from the makers' sheets; the longest name that a
device's kind begins with holds."""


def peak_flops(device: jax.Device) -> float | None:
    """Of one device; None for one that the table does not know, such as a CPU."""
    names = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def step_flops(
    model: DecoderConfig,
    shapes: Iterable[tuple[int, int]],
    trained: Params,
    teacher: DecoderConfig | None,
) -> float:
    """FLOPs that a step of these (rows, length) needs, nothing computed twice.

    A parameter that a token is multiplied with costs 2 forward, 2 backward, and 2 more
    if it is trained (6 N T when all are); attention over the earlier half of the keys
    twice that of its forward pass again. A teacher costs its forward pass.
    """
    moved = sum(x.size for path, x in trained.items() if x.ndim > 1 and path != "table")
    if model.tie_embeddings and "table" in trained:
        moved += trained["table"].size
    total = 0.0
    for rows, length in shapes:
        tokens = rows * length
        total += tokens * (4 * _multiplied(model) + 2 * moved)
        total += 3 * tokens * _attention(model, length)
        if teacher is not None:
            total += tokens * (2 * _multiplied(teacher) + _attention(teacher, length))
    return total


def memory_peak() -> int | None:
    """Bytes that this process's first device held at most; None where it is unknown."""
    stats = jax.local_devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use")


def _multiplied(model: DecoderConfig) -> int:
    """Parameters that every token is multiplied with: no embedding, but the logits'."""
    layers = sum(map(_of_attention, map(model.only, range(model.layers))))
    layers += model.layers * 3 * model.width * model.feed_forward
    return layers + model.vocabulary * model.width


def _of_attention(layer: DecoderConfig) -> int:
    """Parameters of a decoder's only layer that make and read its heads."""
    D, N, latent = layer.width, layer.query_heads, layer.latent(0)
    if latent is None:
        return D * (2 * N + 2 * layer.kv_heads) * layer.head_dim
    query, value = latent.nope_dim + latent.rope_dim, latent.value_dim
    rank = latent.query_rank
    queries = D * N * query if rank is None else rank * (D + N * query)
    up = latent.rank * N * (latent.nope_dim + value)
    return queries + D * latent.entry + up + N * value * D


def _attention(model: DecoderConfig, length: int) -> float:
    """Forward FLOPs of a token's scores and values, over half of the length."""
    latents = [model.latent(i) for i in range(model.layers)]
    sizes = [
        2 * model.head_dim
        if latent is None
        else latent.nope_dim + latent.rope_dim + latent.value_dim
        for latent in latents
    ]
    return 1.0 * model.query_heads * sum(sizes) * length
