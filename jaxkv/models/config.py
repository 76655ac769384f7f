"""DecoderConfig: the sizes and small differences of one dense decoder."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretched rotary frequencies (`rope_type: llama3`).

    A frequency whose wavelength is below `original / high_freq_factor` stays, one above
    `original / low_freq_factor` is divided by `factor`, those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder of a dense family (Llama, Qwen3); the shapes use jaxkv/dims.py."""

    architecture: str = "LlamaForCausalLM"  # a key of jaxkv.models.families.FAMILIES
    vocabulary: int = 512  # V
    width: int = 256  # D
    feed_forward: int = 512  # F
    layers: int = 6  # L
    query_heads: int = 8  # N
    kv_heads: int = 4  # K, divides N
    head_dim: int = 64  # H
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = False  # RMS norm of every query and key head, before RoPE (Qwen3)
    max_position: int = 8192  # tokens the model was trained for
    stop_tokens: tuple[int, ...] = ()
    initial_scale: float = 0.02  # standard deviation of fresh weights
    repeat_tokens: tuple[int, ...] = ()  # what asks it to repeat what it has read

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads={self.query_heads} is not a multiple of "
                f"kv_heads={self.kv_heads}; grouped queries need whole groups."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs.")

    @property
    def group(self) -> int:
        """Query heads that share one kv head, G."""
        return self.query_heads // self.kv_heads

    def inverse_frequencies(self) -> np.ndarray:
        """RoPE's angular frequencies [H/2] in radians a token, fp32."""
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        frequency = 1.0 / self.rope_theta**exponent
        scaling = self.rope_scaling
        if scaling is not None:
            wavelength = 2 * math.pi / frequency
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            smooth = (scaling.original_max_position / wavelength - low) / (high - low)
            smooth = np.clip(smooth, 0.0, 1.0)
            frequency = frequency * (smooth + (1 - smooth) / scaling.factor)
        return frequency.astype(np.float32)
