"""Which nouns of a long list are many: RULER's common words and frequent words.

note x1 .. xk .  ...  note x1 .. xk .  ...
common :    ->  the four nouns that are said far more often than any other, in any order
frequent :  ->  the three most frequent nouns, whose counts fall as in Zipf's law

The list is drawn in decks, each a share of every count: however many decks there is
room for, the nouns that are asked for are the same and no two counts tie.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.language import LINE, NOUNS, STOCK
from jaxkv.evaluate.tasks.base import Group, Task

COMMON = (3, 3, 3, 3)
OTHERS = 12
"""Of a deck: how often each common noun is said, and how many other nouns are, once."""

ZIPF = (32, 8, 4, 2, 1, 1, 1)
"""How often a deck says each noun: 32 / rank^2, RULER's exponent."""


@dataclass(frozen=True)
class WordList(Task):
    """One list a context, and one question."""

    asked: int = 1

    @property
    @abstractmethod
    def counts(self) -> tuple[int, ...]:
        """How often a deck says each of the frequent nouns."""

    @property
    @abstractmethod
    def others(self) -> int:
        """How many other nouns a deck says once."""

    @property
    @abstractmethod
    def wanted(self) -> int:
        """How many nouns are asked for."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The question."""

    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """Decks of one list, in lines."""
        stock = {word for sentence in STOCK for word in sentence.split()}
        nouns = [noun for noun in rng.permutation(NOUNS).tolist() if noun not in stock]
        counts = self.counts
        frequent, rest = nouns[: len(counts)], nouns[len(counts) :]
        repeated = [
            noun
            for noun, count in zip(frequent, counts, strict=True)
            for _ in range(count)
        ]
        asked = tuple(frequent[: self.wanted])
        at = 0
        while True:
            others = [rest[(at + i) % len(rest)] for i in range(self.others)]
            at += self.others
            deck = rng.permutation(repeated + others).tolist()
            answer = f"{' '.join(asked)} ."
            yield Group(_lines(rng, deck), self.text, asked, answer, about=asked[0])


@dataclass(frozen=True)
class CommonWords(WordList):
    """Four nouns are said often, and all others now and then."""

    counts: tuple[int, ...] = COMMON
    others: int = OTHERS
    wanted: int = 4
    text: str = "common :"

    @property
    def family(self) -> str:
        """`common_words`."""
        return "common_words"


@dataclass(frozen=True)
class FrequentWords(WordList):
    """Seven nouns, said as often as Zipf's law has it."""

    counts: tuple[int, ...] = ZIPF
    others: int = 0
    wanted: int = 3
    text: str = "frequent :"

    @property
    def family(self) -> str:
        """`frequent_words`."""
        return "frequent_words"


def _lines(rng: np.random.Generator, nouns: list[str]) -> tuple[str, ...]:
    """The nouns in lines of four to eight."""
    low, high = LINE
    lines = []
    while nouns:
        count = int(rng.integers(low, high + 1))
        if 0 < len(nouns) - count < low:
            count = len(nouns) if len(nouns) <= high else len(nouns) - low
        lines.append(f"note {' '.join(nouns[:count])} .")
        nouns = nouns[count:]
    return tuple(lines)
