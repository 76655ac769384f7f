"""Chains of assignments; asked are the variables on the way to a value, and the value.

let A5 N5 be x1 .. xk .  ...  let A4 N4 be A5 N5 .  ...  let A1 N1 be A2 N2 .
trace let A1 N1 be  ->  A2 N2 . let A2 N2 be A3 N3 . ... let A5 N5 be x1 .. xk .

After RULER's variable tracking, which likewise has four hops and scores each variable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import Assignment, trace
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class VariableTracking(Task):
    """Chains of `hops` assignments after the first; none shares a variable."""

    hops: int = 4

    @property
    def family(self) -> str:
        """`variable_tracking`."""
        return "variable_tracking"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """A chain, every variable being assigned before it is used."""
        taken: set[tuple[str, str]] = set()
        while True:
            root = draw_fact(rng, taken)
            chain = [Assignment(*root.key, root.values)]
            for _ in range(self.hops):
                variable = draw_fact(rng, taken).key
                chain.insert(0, Assignment(*variable, chain[0].key))
            text, answer = trace(tuple(chain))
            values = tuple(assignment.value for assignment in chain)
            pieces = tuple(assignment.text for assignment in chain[::-1])
            yield Group(pieces, text, values, answer, about=chain[0].text)
