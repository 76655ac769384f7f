"""What a source of training data is, and what it is opened with.

A row is a dict of arrays [length], of one or more documents and then padding:

    tokens    int32    ids; 0 where there is padding
    segment   int32    1, 2, ... by document; 0 is padding
    position  int32    from 0 in every segment; 0 where there is padding
    weight    float32  of that token as a target: 0 for the first of a segment, padding
                       and prompts, else 1
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

Row = dict[str, np.ndarray]

LARGE = 16 << 20
"""Bytes that take long enough to show how far it is."""


@dataclass(frozen=True)
class Opening:
    """What rows depend on besides their source; `console` hears what was read."""

    tokenizer: Tokenizer | None
    vocabulary: int
    length: int
    seed: int
    console: Console | None = None

    def tell(self, line: str) -> None:
        """Prints a line, where there is a console."""
        if self.console:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def shows(self, size: int) -> bool:
        """Whether to show how far reading is: at a terminal, of so many bytes."""
        at_terminal = self.console is not None and self.console.is_terminal
        return at_terminal and size >= LARGE


class Source(ABC):
    """A frozen dataclass that stands in a config and says where rows come from."""

    def files(self) -> tuple[Path, ...]:
        """The files that it reads; ValueError where one is missing."""
        return ()

    @abstractmethod
    def rows(self, opening: Opening) -> grain.MapDataset:
        """Rows without end, each a function of the source, the opening and its number.

        Raises ValueError, one sentence, for whatever is wrong in the data.
        """


def join_segments(documents: Iterable[tuple[np.ndarray, int]], length: int) -> Row:
    """The row of some documents, each given as (its tokens, how many are a prompt)."""
    row: Row = {
        "tokens": np.zeros(length, np.int32),
        "segment": np.zeros(length, np.int32),
        "position": np.zeros(length, np.int32),
        "weight": np.zeros(length, np.float32),
    }
    start = 0
    for segment, (tokens, prompt) in enumerate(documents, 1):
        stop = start + len(tokens)
        row["tokens"][start:stop] = tokens
        row["segment"][start:stop] = segment
        row["position"][start:stop] = np.arange(stop - start)
        row["weight"][start + max(prompt, 1) : stop] = 1
        start = stop
    return row


def sub_seed(seed: int, *parts: int) -> int:
    """A seed below 2**32 for a part of what `seed` decides."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1)[0])
