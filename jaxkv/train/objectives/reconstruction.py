"""Reconstruction: what a cache would hold, through a compressor and back.

    value = mean_t mean_l mean((entries_lt - rebuilt_lt)^2)

The entries are constants here: the compressor learns them, they do not move to suit it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxkv.train.objectives.base import Gave, Objective, Value, weighted_squares


@dataclass(frozen=True)
class Reconstruction(Objective):
    """The mean over layers and over the arrays of an entry, each [L, B, T, numbers]."""

    @property
    def looks(self) -> frozenset[str]:
        return frozenset({"attended"})

    def __call__(self, gave: Gave) -> Value:
        found = gave.student.attended
        assert found is not None
        entries, rebuilt = map(jax.tree.leaves, (found.entries, found.rebuilt))
        pairs = list(zip(rebuilt, entries, strict=True))
        if not pairs:
            raise ValueError(
                "Reconstruction compares entries with what a compressor makes of "
                "them, and no add-on of this run has one; give it such an add-on."
            )
        total = jnp.float32(0)
        for pair in pairs:
            total += weighted_squares(*pair, gave)
        return Value(total / len(pairs))
