"""Two facts are asked about at once.

recall the A2 N2 V2 and the A1 N1 V1  ->  x1 .. xk . the A2 N2 V2 y1 .. yj .
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import recall_two
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class MultiQuery(Task):
    """Facts, each of a key of its own; a question asks about two of them."""

    @property
    def family(self) -> str:
        """`multi_query`."""
        return "multi_query"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """Two facts, the one that is answered first before or after the other."""
        taken: set[tuple[str, str]] = set()
        while True:
            first, second = draw_fact(rng, taken), draw_fact(rng, taken)
            text, answer = recall_two(first, second)
            pieces = (first.text, second.text)[:: 1 if rng.random() < 0.5 else -1]
            values = (first.value, second.value)
            yield Group(pieces, text, values, answer, about=first.text)
