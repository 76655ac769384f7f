"""Two statements have one key and two values, and both values are asked for.

the A N V x1 x2 x3 x4 .  ...  the A N V y1 y2 y3 y4 .
recall both the A N V  ->  x1 x2 x3 x4 and y1 y2 y3 y4 .
"""

from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, draw_statement, recall_both
from jaxkv.evaluate.tasks.base import Question, Task, draw_facts


@dataclass(frozen=True)
class MultiValue(Task):
    """As many keys as questions, with two values each, in order of appearance."""

    @property
    def name(self) -> str:
        """`multi_value`."""
        return "multi_value"

    def plant(
        self, rng: np.random.Generator, room: int
    ) -> tuple[list[Statement], tuple[Question, ...]]:
        """Two statements a key, shuffled, and a question about each key."""
        first = draw_facts(rng, self.asked, set())
        second = [_again(rng, fact) for fact in first]
        facts = first + second
        planted = [facts[i] for i in rng.permutation(len(facts))]
        pairs = [[fact for fact in planted if fact.key == key.key] for key in first]
        return planted, tuple(_question(*pair) for pair in pairs)


def _again(rng: np.random.Generator, fact: Statement) -> Statement:
    """A statement that begins like `fact` and has another value."""
    while True:
        other = draw_statement(rng, fact.adjective, fact.noun, fact.verb)
        if other.values != fact.values:
            return other


def _question(first: Statement, second: Statement) -> Question:
    text, answer = recall_both(first, second)
    return Question(text, (first.value, second.value), answer)
