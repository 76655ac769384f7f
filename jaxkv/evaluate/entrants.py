"""Entrants: the rows of a comparison, each a method at a keep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxkv.method import Method, method, names


@dataclass(frozen=True)
class Entrant:
    """A method as it was named, at one keep."""

    name: str
    method: Method

    @property
    def keep(self) -> float:
        """Slots a head, as a fraction of the prompt."""
        return self.method.keep

    def excuse(self, length: int) -> str:
        """Why it cannot take part with prompts of `length` tokens; empty if it can."""
        needed = self.method.minimum(length)
        if needed <= max(1.0, self.keep * length + 1e-6):
            return ""
        return f"holds {needed} slots at least, keep {needed / length:.3f}"


def entrants(
    methods: Sequence[str] | None, keep: Sequence[float]
) -> tuple[Entrant, ...]:
    """Each of `methods` (all, `full` first) at each keep; `full` has one, of 1.

    Raises ValueError, one sentence, for an unknown method or parameter, or a bad keep.
    """
    if methods is None:
        methods = sorted(names(), key=lambda name: (name != "full", name))
    if not methods:
        raise ValueError("There is no method to compare; name one at least.")
    if not keep:
        raise ValueError("There is no keep to compare at; give one at least.")
    made = [
        Entrant(name, row if row.slots(1000) != 1000 else replace(row, keep=1.0))
        for name in methods
        for row in (method(name, keep=k) for k in keep)
    ]
    return tuple(dict.fromkeys(made))
