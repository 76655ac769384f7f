"""What a task is: facts in a context, and questions about some of them.

Every task has two forms. In the **dense** one the context is nothing but facts, any of
which could be asked about: eviction has nothing to throw away, and a cache that is
compressed before the question is known loses answers. In the **sparse** one facts are
at most a tenth of the tokens and the rest is a stock of four sentences said over and
over, as in RULER's repeated haystack (Hsieh et al., 2024, arXiv:2404.06654): it costs
a model next to nothing to predict, so a method can tell without the question what it
need not keep.

In both, many facts are there that nobody asks about, and nothing marks those that
somebody does: a question is about the first facts drawn, and all are laid at depths of
their own.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.language import STOCK, Statement, draw_statement

SPARSE = 0.09
"""The share of a sparse context's tokens that are facts, at most; that leaves a tenth
where the context ends a little short of its length."""

SHORTEST_SENTENCE = 6
"""No tokenizer makes fewer tokens of a stock sentence, of six to eight words."""


@dataclass(frozen=True)
class Question:
    """A question, the strings that a right answer contains, and the ideal answer.

    Attributes:
      depth: where the first sentence asked about begins, as a share of the context, in
        [0, 1); of a list, where the first of its most frequent noun stands.
    """

    text: str
    references: tuple[str, ...]
    answer: str
    depth: float


@dataclass(frozen=True)
class Sample:
    """A context and several questions about different facts in it.

    What a model sees is `context`, a space and a question's `text`.
    """

    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Group:
    """Sentences that belong together, and the question that may be asked about them.

    Attributes:
      pieces: whole sentences, in order of appearance; other text may stand between two
        pieces, but not within one.
      about: the words whose first appearance is the question's depth.
    """

    pieces: tuple[str, ...]
    text: str
    references: tuple[str, ...]
    answer: str
    about: str


@dataclass(frozen=True)
class Task(ABC):
    """A generator of samples of a given length.

    Attributes:
      dense: whether the context is all facts, or filler but for a tenth.
      asked: questions a sample, each about a group of its own.
    """

    dense: bool = False
    asked: int = 2

    def __post_init__(self) -> None:
        if self.asked < 1:
            raise ValueError(f"asked={self.asked}; a task asks at least once.")

    @property
    @abstractmethod
    def family(self) -> str:
        """The name that both forms share."""

    @property
    def name(self) -> str:
        """What `task(name)` finds it by: the family, and `_dense` in that form."""
        return f"{self.family}_dense" if self.dense else self.family

    @abstractmethod
    def groups(self, rng: np.random.Generator) -> Iterator[Group]:
        """Groups without end, of different keys; any of them could be asked about."""

    def __call__(
        self, tokenizer: Tokenizer, length: int, rng: np.random.Generator
    ) -> Sample:
        """A sample that fills `length` tokens, but for less than a stock sentence.

        The tokens of context and longest question, with the tokenizer's own special
        tokens, are at most `length`. The sample is a function of the arguments. Where a
        tenth is too little for what is asked about, that alone is planted.

        Raises:
          ValueError: what is asked about and the questions alone are longer.
        """
        groups = self._draw(tokenizer, length, rng)
        asked = groups[: self.asked]
        longest = max((g.text for g in asked), key=lambda t: _count(tokenizer, t))
        depths = [np.sort(rng.random(len(group.pieces))) for group in groups]

        def fits(context: str) -> bool:
            return _count(tokenizer, f"{context} {longest}") <= length

        while not fits(_lay(groups, depths, 0)):
            if len(groups) == len(asked):
                raise ValueError(
                    f"{self.name} does not fit into {length} tokens; give more."
                )
            groups.pop()
        low, high = 0, length // SHORTEST_SENTENCE + 2
        while high - low > 1:
            middle = (low + high) // 2
            enough = fits(_lay(groups, depths, middle))
            low, high = (middle, high) if enough else (low, middle)
        context = _lay(groups, depths, low)
        return Sample(context, tuple(_question(group, context) for group in asked))

    def _draw(
        self, tokenizer: Tokenizer, length: int, rng: np.random.Generator
    ) -> list[Group]:
        """The groups that are asked about, and as many more as there is room for."""
        source = self.groups(rng)
        groups = list(islice(source, self.asked))
        room = length - max(_count(tokenizer, group.text) for group in groups)
        if not self.dense:
            room = int(SPARSE * room)

        def size(group: Group) -> int:
            text = " " + " ".join(group.pieces)
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

        used = sum(size(group) for group in groups)
        for group in source:
            used += size(group)
            if used > room:
                return groups
            groups.append(group)
        raise AssertionError("groups are without end")


def draw_fact(
    rng: np.random.Generator, taken: set[tuple[str, str]], **words: str
) -> Statement:
    """A fact of a new key, which is added to `taken`; given words stay as they are."""
    while True:
        fact = draw_statement(rng, **words)
        if fact.key not in taken:
            taken.add(fact.key)
            return fact


def score(answer: str, references: tuple[str, ...]) -> float:
    """The share of `references` that `answer` contains as whole words, in [0, 1].

    RULER's recall, whatever else the answer says; white space is all alike.

    Example:
      >>> score("fox  axe map jar . the", ("fox axe map jar", "bee cow ant elk"))
      0.5
      >>> score("the bears", ("bear",))
      0.0
    """
    return sum(_says(answer, reference) for reference in references) / len(references)


def _says(answer: str, reference: str) -> bool:
    words = r"\s+".join(re.escape(word) for word in reference.split())
    return re.search(rf"(?<!\w){words}(?!\w)", answer) is not None


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def _lay(groups: list[Group], depths: list[np.ndarray], stock: int) -> str:
    """The pieces of all groups by their depths, among `stock` stock sentences."""
    placed = sorted(
        (depth, piece)
        for group, own in zip(groups, depths, strict=False)
        for depth, piece in zip(own, group.pieces, strict=True)
    )
    cuts = [0, *(int(depth * (stock + 1)) for depth, _ in placed), stock]
    sentences: list[str] = []
    for i, (start, stop) in enumerate(pairwise(cuts)):
        sentences += [STOCK[j % len(STOCK)] for j in range(start, stop)]
        sentences += [piece for _, piece in placed[i : i + 1]]
    return " ".join(sentences)


def _question(group: Group, context: str) -> Question:
    depth = f" {context}".index(f" {group.about}") / len(context)
    return Question(group.text, group.references, group.answer, depth)
