"""Model FLOP utilisation and memory: what training makes of the hardware."""

from collections.abc import Iterable, Mapping
from math import prod

import jax
from flax import nnx

from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
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
    layers = sum(map(_of_layer, map(model.only, range(model.layers))))
    return layers + model.vocabulary * model.width


def _of_layer(layer: DecoderConfig) -> int:
    """Numbers of the matrices of a decoder's only layer."""
    made = nnx.eval_shape(lambda: Decoder(layer, rngs=nnx.Rngs(0)))
    arrays = jax.tree.leaves(nnx.state(made.layers[0], nnx.Param))
    return sum(array.size for array in arrays if array.ndim > 1)


def _attention(model: DecoderConfig, length: int) -> float:
    """Forward FLOPs of a token's scores and values, over half of the length."""
    heads = model.query_heads, model.head_dim
    layers = [model.sizes(i) for i in range(model.layers)]
    numbers = [2 * prod(heads) if s is None else s.products(*heads) for s in layers]
    return 1.0 * sum(numbers) * length
