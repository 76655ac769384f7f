"""Two facts have one key and two values, and both values are asked for.

the A N V x1 .. xk .  ...  the A N V y1 .. yj .
recall both the A N V  ->  x1 .. xk and y1 .. yj .
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, draw_statement, recall_both
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class MultiValue(Task):
    """Keys with two values each, in order of appearance."""

    @property
    def family(self) -> str:
        """`multi_value`."""
        return "multi_value"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """The two facts of a key."""
        taken: set[tuple[str, str]] = set()
        while True:
            first = draw_fact(rng, taken)
            second = _again(rng, first)
            text, answer = recall_both(first, second)
            values = (first.value, second.value)
            pieces = (first.text, second.text)
            yield Group(pieces, text, values, answer, about=first.text)


def _again(rng: np.random.Generator, fact: Statement) -> Statement:
    """A statement that begins like `fact` and has a value that says something else."""
    while True:
        other = draw_statement(rng, fact.adjective, fact.noun, fact.verb)
        if f" {fact.value} " not in f" {other.value} " and (
            f" {other.value} " not in f" {fact.value} "
        ):
            return other
