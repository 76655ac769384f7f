"""A passage is to be repeated word for word, from a place that the question names.

repeat from the A N V  ->  the 16 words that follow in the context
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import QUOTED, repeat_from
from jaxkv.evaluate.tasks.base import Group, Task, draw_fact


@dataclass(frozen=True)
class Verbatim(Task):
    """Passages of several facts on end."""

    @property
    def family(self) -> str:
        """`verbatim`."""
        return "verbatim"

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """A passage, as short as can be asked for."""
        taken: set[tuple[str, str]] = set()
        while True:
            passage = draw_fact(rng, taken).text
            while len(passage.split()) < 4 + QUOTED:
                passage = f"{passage} {draw_fact(rng, taken).text}"
            text, answer = repeat_from(passage)
            yield Group((passage,), text, (answer,), answer, about=passage)
