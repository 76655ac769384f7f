"""Gates: which kv heads need all tokens, learned beside a frozen model (DuoAttention).

DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads,
arXiv 2410.10819. Each kv head has one gate alpha, 1 at first, and attends as

    o = alpha full + (1 - alpha) streaming(sinks, recent)

A run trains alpha towards the model's own hidden states and towards 0, and clips it to
[0, 1] after each step.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxkv.attention.base import Attention
from jaxkv.attention.causal import causal_attention
from jaxkv.attention.streaming import streaming_attention
from jaxkv.models.config import DecoderConfig
from jaxkv.train.add_ons.base import Added, AddOn, Attended


@dataclass(frozen=True)
class Gates(AddOn):
    """One gate a kv head, and what a head sees whose gate is 0.

    `first` is what every gate is before training.

    Raises:
      ValueError: there is no recent token, or fewer than no sinks.
    """

    kind: ClassVar[str | None] = "gates"
    sinks: int = 16
    recent: int = 112
    first: float = 1.0

    def __post_init__(self) -> None:
        if self.recent < 1 or self.sinks < 0:
            raise ValueError(
                f"sinks={self.sinks} and recent={self.recent}; give 0 sinks and 1 "
                "recent token at least."
            )

    def __call__(self, config: DecoderConfig, rngs: nnx.Rngs) -> "GatedHeads":
        return GatedHeads(self, config)


class GatedHeads(Added):
    """gate [L, K] fp32. Gates of 1 are the model itself."""

    def __init__(self, about: Gates, config: DecoderConfig) -> None:
        if not (config.alike and config.all_values_apart):
            raise ValueError(
                "Gates tell kv heads apart, as many in each layer, and a layer with "
                "latent attention caches one row for all of its heads; give a model of "
                "grouped queries."
            )
        self.about = about
        self.gate = nnx.Param(jnp.full((config.layers, config.rows(0)), about.first))

    def attend(
        self,
        i: Int[Array, ""],
        attention: Attention,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        segment: Int[Array, "B T"] | None,
        key: Key[Array, ""] | None = None,
    ) -> Attended:
        if segment is not None:
            raise ValueError(
                "Gates are trained on one document a row: a head that streams looks "
                "at the row's first tokens; give data that packs none."
            )
        q, k, v = attention.entries(x, position)
        assert v is not None  # of grouped queries
        full_BTNH = causal_attention(q, k, v)
        sinks, recent = self.about.sinks, self.about.recent
        streaming_BTNH = streaming_attention(q, k, v, sinks=sinks, recent=recent)
        gate_N = jnp.repeat(self.gate[...][i], q.shape[2] // k.shape[2])
        gate_BTNH = gate_N[None, None, :, None].astype(full_BTNH.dtype)
        mixed_BTNH = gate_BTNH * full_BTNH + (1 - gate_BTNH) * streaming_BTNH
        return Attended(attention.output(mixed_BTNH))

    def kept(self) -> Float[Array, "L K"]:
        """The gates."""
        return self.gate[...]
