"""One fact is asked about, among distractors that share a word of its key.

the A N V x1 .. xk .     the fact
the A N' V' ...          distractors: its adjective,
the A' N V' ...          its noun,
the A' N' V ...          or its verb
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.tasks.base import Group, Task, draw_fact
from jaxkv.evaluate.tasks.single_needle import about_one


@dataclass(frozen=True)
class MultiKey(Task):
    """Facts, and three distractors for each."""

    @property
    def family(self) -> str:
        """`multi_key`."""
        return "multi_key"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """A fact and its distractors, in random order."""
        taken: set[tuple[str, str]] = set()
        while True:
            fact = draw_fact(rng, taken)
            facts = (
                fact,
                draw_fact(rng, taken, adjective=fact.adjective),
                draw_fact(rng, taken, noun=fact.noun),
                draw_fact(rng, taken, verb=fact.verb),
            )
            order = rng.permutation(len(facts))
            yield about_one(fact, tuple(facts[i] for i in order))
