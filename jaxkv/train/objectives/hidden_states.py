"""Hidden states near the teacher's: mean squared error, layer by layer or at the end.

    value = mean_t mean_l mean_d (h_ltd - h'_ltd)^2

h_l leaves layer l; at the end alone it is the last normed state (DuoAttention, arXiv
2410.10819).
"""

from dataclasses import dataclass
from typing import Literal

from jaxkv.train.objectives.base import Gave, Imitation, Value, weighted_squares


@dataclass(frozen=True)
class HiddenStates(Imitation):
    """The mean over all layers, or of the last normed state."""

    layers: Literal["all", "last"] = "all"

    @property
    def looks(self) -> frozenset[str]:
        return frozenset({"layers"} if self.layers == "all" else ())

    def __call__(self, gave: Gave) -> Value:
        assert gave.teacher is not None
        ours, theirs = gave.student, gave.teacher
        if self.layers == "last":
            return Value(weighted_squares(ours.hidden, theirs.hidden, gave))
        assert ours.layers is not None and theirs.layers is not None
        return Value(weighted_squares(ours.layers, theirs.layers, gave))
