"""The answer to the first fact is the key of the second.

the A N V A2 N2 .  ...  the A2 N2 V2 x1 .. xk .
follow the A N V  ->  A2 N2 . the A2 N2 V2 x1 .. xk .

The question does not name the second fact: what has to be looked up next is known only
once the first answer has been read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import follow, link
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class TwoHop(Task):
    """Links, and the facts that they lead to; the value of the fact is asked for."""

    @property
    def family(self) -> str:
        """`two_hop`."""
        return "two_hop"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """A link and its fact, in either order."""
        taken: set[tuple[str, str]] = set()
        while True:
            fact = draw_fact(rng, taken)
            pointer = link(draw_fact(rng, taken), fact)
            text, answer = follow(pointer, fact)
            pieces = (pointer.text, fact.text)[:: 1 if rng.random() < 0.5 else -1]
            yield Group(pieces, text, (fact.value,), answer, about=pointer.text)
