"""One fact is asked about, among distractors that share a word of its key.

the A N V x1 x2 x3 x4 .     the fact
the A N' V' ...             distractors: its adjective,
the A' N V' ...             its noun,
the A' N' V ...             or its verb
"""

from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Statement, draw_statement
from jaxkv.evaluate.tasks.base import Question, Task, draw_facts
from jaxkv.evaluate.tasks.single_needle import question


@dataclass(frozen=True)
class MultiKey(Task):
    """Facts, and `distractors` for each, fewer where they would exceed a tenth.

    Every fact keeps one distractor, however short the context.
    """

    distractors: int = 6

    @property
    def name(self) -> str:
        """`multi_key`."""
        return "multi_key"

    def plant(
        self, rng: np.random.Generator, room: int
    ) -> tuple[list[Statement], tuple[Question, ...]]:
        """Facts and distractors in random order, and a question about each fact."""
        taken: set[tuple[str, str]] = set()
        facts = draw_facts(rng, self.asked, taken)
        each = min(self.distractors, max(1, room // self.asked - 1))
        planted = list(facts)
        for fact in facts:
            planted += [_like(rng, fact, i, taken) for i in range(each)]
        order = rng.permutation(len(planted))
        return [planted[i] for i in order], tuple(question(fact) for fact in facts)


def _like(
    rng: np.random.Generator, fact: Statement, i: int, taken: set[tuple[str, str]]
) -> Statement:
    """A statement of a new key that shares the adjective, noun or verb of `fact`."""
    shared = (
        {"adjective": fact.adjective},
        {"noun": fact.noun},
        {"verb": fact.verb},
    )[i % 3]
    while True:
        other = draw_statement(rng, **shared)
        if other.key not in taken:
            taken.add(other.key)
            return other
