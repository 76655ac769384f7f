"""DecoderConfig: the sizes and small differences of one dense decoder."""

from dataclasses import dataclass, replace

import numpy as np

from jaxkv.models.frequencies import AnyScaling, inverse_frequencies
from jaxkv.models.sizes import Sizes


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder of a dense family; the shapes use jaxkv/dims.py."""

    architecture: str = "LlamaForCausalLM"  # a key of jaxkv.models.families.FAMILIES
    vocabulary: int = 512  # V
    width: int = 256  # D
    feed_forward: int = 512  # F
    layers: int = 6  # L
    query_heads: int = 8  # N
    kv_heads: int = 4  # K of a layer of grouped queries, divides N
    head_dim: int = 64  # H of such a layer
    rope_theta: float = 10_000.0
    rope_scaling: AnyScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qk_norm: bool = False  # RMS norm of every query and key head, before RoPE (Qwen3)
    max_position: int = 8192  # tokens the model was trained for
    stop_tokens: tuple[int, ...] = ()
    initial_scale: float = 0.02  # standard deviation of fresh weights
    repeat_tokens: tuple[int, ...] = ()  # what asks it to repeat what it has read
    # What each layer attends with, None = grouped queries; () = they in every layer.
    attention: tuple[Sizes | None, ...] = ()

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads={self.query_heads} is not a multiple of "
                f"kv_heads={self.kv_heads}; grouped queries need whole groups."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs.")
        if self.attention and len(self.attention) != self.layers:
            raise ValueError(
                f"attention names {len(self.attention)} layers and there are "
                f"{self.layers}; name each, or none."
            )
        for sizes in self.attention:
            if sizes is not None:
                sizes.check(self.kv_heads, self.head_dim)

    @property
    def group(self) -> int:
        """Query heads that share one kv head, G, in a layer of grouped queries."""
        return self.query_heads // self.kv_heads

    def sizes(self, layer: int) -> Sizes | None:
        """Of what a layer attends with; None where it has grouped queries."""
        return self.attention[layer] if self.attention else None

    def only(self, layer: int) -> "DecoderConfig":
        """The config of a decoder that has this layer and no other."""
        return replace(self, layers=1, attention=self.attention[layer : layer + 1])

    def rows(self, layer: int) -> int:
        """K, the rows that a layer caches: its kv heads, or one of latents."""
        sizes = self.sizes(layer)
        return self.kv_heads if sizes is None else sizes.rows

    def entry(self, layer: int) -> int:
        """H, numbers of a cached key; of one that has its value in it, all."""
        sizes = self.sizes(layer)
        return self.head_dim if sizes is None else sizes.entry

    def values_apart(self, layer: int) -> bool:
        """Whether a layer caches values beside its keys."""
        sizes = self.sizes(layer)
        return sizes is None or sizes.values_apart

    @property
    def all_values_apart(self) -> bool:
        """Whether every layer caches keys and values, and none both in one."""
        return all(map(self.values_apart, range(self.layers)))

    def by_head(self, layer: int) -> bool:
        """Whether each row of a layer's cache is a kv head's own."""
        sizes = self.sizes(layer)
        return sizes is None or sizes.by_head

    @property
    def alike(self) -> bool:
        """Whether all layers cache as many kv heads of one size, and no latents."""
        shapes = {(self.rows(i), self.entry(i)) for i in range(self.layers)}
        return all(map(self.by_head, range(self.layers))) and len(shapes) <= 1

    def trail(self, layer: int) -> tuple[int, ...]:
        """What a row of a layer's cache carries beside its slots; () = nothing."""
        sizes = self.sizes(layer)
        return () if sizes is None else sizes.trail

    def entry_numbers(self, layer: int) -> int:
        """Numbers that a layer caches of a token."""
        return self.rows(layer) * self.slot_numbers(layer)

    def slot_numbers(self, layer: int) -> int:
        """Numbers of a slot, keys and values."""
        return self.entry(layer) * (2 if self.values_apart(layer) else 1)

    def inverse_frequencies(self, size: int | None = None) -> np.ndarray:
        """RoPE's angular frequencies in radians a token, fp32; of heads [H/2]."""
        size = self.head_dim if size is None else size
        return inverse_frequencies(size, self.rope_theta, self.rope_scaling)
