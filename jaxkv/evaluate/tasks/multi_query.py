"""Two facts are asked about at once.

recall the A2 N2 V2 and the A1 N1 V1  ->  x1 x2 x3 x4 . the A2 N2 V2 y1 y2 y3 y4 .
"""

from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, recall_two
from jaxkv.evaluate.tasks.base import Question, Task, draw_facts


@dataclass(frozen=True)
class MultiQuery(Task):
    """Twice as many facts as questions; each question asks about two of them."""

    @property
    def name(self) -> str:
        """`multi_query`."""
        return "multi_query"

    def plant(
        self, rng: np.random.Generator, room: int
    ) -> tuple[list[Statement], tuple[Question, ...]]:
        """The facts, and a question about every two."""
        facts = draw_facts(rng, 2 * self.asked, set())
        planted = [facts[i] for i in rng.permutation(len(facts))]
        pairs = zip(facts[::2], facts[1::2], strict=True)
        return planted, tuple(_question(*pair) for pair in pairs)


def _question(first: Statement, second: Statement) -> Question:
    text, answer = recall_two(first, second)
    return Question(text, (first.value, second.value), answer)
