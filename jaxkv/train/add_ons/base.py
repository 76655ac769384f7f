"""AddOn: what a run adds to a decoder, a module that takes a part in its attention."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxkv.attention.base import Attention
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder


class Attended(NamedTuple):
    """What a layer's attention gave."""

    output: Float[Array, "B T D"]  # through W_o
    entries: Any = None  # what a cache would hold of the tokens,
    rebuilt: Any = None  # and the same after a compressor and back


class Added(nnx.Module):
    """The module; the paths of its parameters begin with "add_on."."""

    @abstractmethod
    def attend(
        self,
        i: Int[Array, ""],
        attention: Attention,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        segment: Int[Array, "B T"] | None,
        key: Key[Array, ""] | None = None,
    ) -> Attended:
        """The i-th layer's attention, of normed hidden states x.

        key: for what is drawn at each step, the same in all layers; None where nothing
        is.
        """

    def kept(self) -> Float[Array, "..."] | None:
        """The share of the cache that it keeps, of each thing that it tells apart."""
        return None

    def into(self, model: Decoder) -> Decoder | None:
        """The model with what was learned within it; None = that stays apart."""
        return None


class AddOn(ABC):
    """A frozen dataclass in a run's config.

    `kind` names the calibration (`jaxkv.calibrate.kinds`) that the trained parameters
    are; None for one that no method reads yet.
    """

    kind: ClassVar[str | None] = None

    @abstractmethod
    def __call__(self, config: DecoderConfig, rngs: nnx.Rngs) -> Added:
        """The module for a decoder of that config, as it is before training."""
