"""Attention outputs near the teacher's: mean squared error of every layer.

    value = mean_t mean_l mean_d (o_ltd - o'_ltd)^2

o_l is what layer l's attention adds to the hidden states, through W_o.
"""

from dataclasses import dataclass

from jaxkv.train.objectives.base import Gave, Imitation, Value, weighted_squares


@dataclass(frozen=True)
class AttentionOutputs(Imitation):
    """The mean over layers."""

    @property
    def looks(self) -> frozenset[str]:
        return frozenset({"attended"})

    def __call__(self, gave: Gave) -> Value:
        assert gave.teacher is not None
        ours, theirs = gave.student.attended, gave.teacher.attended
        assert ours is not None and theirs is not None
        return Value(weighted_squares(ours.output, theirs.output, gave))
