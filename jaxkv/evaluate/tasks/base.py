"""What a needle task is: facts hidden in a context, and questions about them.

After RULER's needle-in-a-haystack families (Hsieh et al., 2024, arXiv:2404.06654), in
the language of `jaxkv.evaluate.language`: the haystack consists of sentences of the
needles' own kind, so that nothing but the question tells them apart.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.language import Statement, draw_statement

SHORTEST_SENTENCE = 8
"""No tokenizer makes fewer tokens of a sentence of nine words."""


@dataclass(frozen=True)
class Question:
    """A question, the strings that a right answer contains, and the ideal answer."""

    text: str
    references: tuple[str, ...]
    answer: str
    depth: float = 0.0  # where the first of its facts stands: 0 first, 1 last


@dataclass(frozen=True)
class Sample:
    """A context and several questions about different facts in it.

    What a model sees is `context`, a space and a question's `text`.
    """

    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Task(ABC):
    """A generator of samples of a given length.

    Attributes:
      asked: questions a sample.
      mentioned: share of the filler that repeats earlier filler, word for word.
    """

    asked: int = 2
    mentioned: float = 0.3

    def __post_init__(self) -> None:
        if self.asked < 1 or not 0 <= self.mentioned < 1:
            raise ValueError("A task asks at least once, with mentioned in [0, 1).")

    @property
    @abstractmethod
    def name(self) -> str:
        """What `task(name)` finds it by."""

    @abstractmethod
    def plant(
        self, rng: np.random.Generator, room: int
    ) -> tuple[list[Statement], tuple[Question, ...]]:
        """The facts and distractors, in order of appearance, and the questions.

        Args:
          room: how many sentences make up a tenth of the context; distractors, but not
          the
            facts that are asked about, keep to it.
        """

    def __call__(
        self, tokenizer: Tokenizer, length: int, rng: np.random.Generator
    ) -> Sample:
        """A sample that fills `length` tokens, but for less than a sentence.

        The tokens of context and longest question, with the tokenizer's own special
        tokens, are at most `length`. The sample is a function of the arguments.

        Raises:
          ValueError: the facts and the questions alone are longer.
        """
        sentence = _count(tokenizer, draw_statement(rng).text)
        planted, questions = self.plant(rng, length // (10 * sentence))
        longest = max((q.text for q in questions), key=lambda t: _count(tokenizer, t))
        most = length // SHORTEST_SENTENCE + 1
        filler = draw_filler(rng, most, {fact.key for fact in planted}, self.mentioned)
        depths = np.sort(rng.random(len(planted)))

        def context(count: int) -> str:
            return _bury(planted, depths, filler[:count])

        def fits(count: int) -> bool:
            return _count(tokenizer, f"{context(count)} {longest}") <= length

        if not fits(0):
            raise ValueError(
                f"{self.name} does not fit into {length} tokens; give more."
            )
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        buried = context(low)
        return Sample(buried, tuple(_with_depth(q, buried) for q in questions))


def draw_facts(
    rng: np.random.Generator, count: int, taken: set[tuple[str, str]]
) -> list[Statement]:
    """`count` statements of new keys, which are added to `taken`."""
    facts: list[Statement] = []
    while len(facts) < count:
        fact = draw_statement(rng)
        if fact.key not in taken:
            taken.add(fact.key)
            facts.append(fact)
    return facts


def draw_filler(
    rng: np.random.Generator,
    count: int,
    taken: set[tuple[str, str]],
    mentioned: float,
) -> list[str]:
    """`count` sentences whose keys are not in `taken`; a share repeats earlier ones."""
    taken = set(taken)
    filler: list[str] = []
    for _ in range(count):
        if filler and rng.random() < mentioned:
            filler.append(filler[int(rng.integers(len(filler)))])
        else:
            filler.append(draw_facts(rng, 1, taken)[0].text)
    return filler


def score(answer: str, references: tuple[str, ...]) -> float:
    """The share of `references` that `answer` contains, white space aside, in [0, 1].

    RULER's recall, whatever else the answer says.

    Example:
      >>> score("fox  axe map jar . the", ("fox axe map jar", "bee cow ant elk"))
      0.5
    """
    said = " ".join(answer.split())
    return sum(" ".join(ref.split()) in said for ref in references) / len(references)


def _with_depth(question: Question, context: str) -> Question:
    first = min(context.find(reference) for reference in question.references)
    return replace(question, depth=max(first, 0) / len(context))


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def _bury(planted: list[Statement], depths: np.ndarray, filler: list[str]) -> str:
    """`filler` with each of `planted` put at its depth, a share of the sentences."""
    cuts = [0, *(int(depth * (len(filler) + 1)) for depth in depths), len(filler)]
    sentences: list[str] = []
    for i, (start, stop) in enumerate(pairwise(cuts)):
        sentences += filler[start:stop]
        if i < len(planted):
            sentences.append(planted[i].text)
    return " ".join(sentences)
