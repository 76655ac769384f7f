"""One fact is asked about: "recall the A N V" -> "x1 x2 x3 x4 ."."""

from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, recall
from jaxkv.evaluate.tasks.base import Question, Task, draw_facts


@dataclass(frozen=True)
class SingleNeedle(Task):
    """As many facts as questions, each asked about once."""

    @property
    def name(self) -> str:
        """`single_needle`."""
        return "single_needle"

    def plant(
        self, rng: np.random.Generator, room: int
    ) -> tuple[list[Statement], tuple[Question, ...]]:
        """The facts, and a question about each."""
        facts = draw_facts(rng, self.asked, set())
        return facts, tuple(question(fact) for fact in facts)


def question(fact: Statement) -> Question:
    """The question about one statement."""
    text, answer = recall(fact)
    return Question(text, (fact.value,), answer)
