"""One fact is asked about: "recall the A N V" -> "x1 .. xk ."."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, recall
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class SingleNeedle(Task):
    """Facts, each of a key of its own."""

    @property
    def family(self) -> str:
        """`single_needle`."""
        return "single_needle"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """Single facts."""
        taken: set[tuple[str, str]] = set()
        while True:
            fact = draw_fact(rng, taken)
            yield about_one(fact, (fact,))


def about_one(fact: Statement, facts: tuple[Statement, ...]) -> Group:
    """The question about one of some facts."""
    text, answer = recall(fact)
    pieces = tuple(other.text for other in facts)
    return Group(pieces, text, (fact.value,), answer, about=fact.text)
