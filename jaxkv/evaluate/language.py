"""A small closed language for retrieval: its sentences, and what may be asked of them.

    fact        the A N V x1 .. xk .        one to eight nouns, its value
    link        the A N V A2 N2 .           the value is the key of a fact
    assignment  let A N be x1 .. xk .       or let A N be A2 N2 . of an earlier one
    note        note x1 .. xk .             a line of a list, four to eight nouns

    one       recall the A N V                      -> x1 .. xk .
    both      recall both the A N V                 -> x1 .. xk and y1 .. yj .
    two       recall the A2 N2 V2 and the A1 N1 V1  -> x1 .. xk . the A2 N2 V2 y1 .. .
    follow    follow the A N V                -> A2 N2 . the A2 N2 V2 x1 .. xk .
    trace     trace let A1 N1 be              -> A2 N2 . let A2 N2 be .. x1 .. xk .
    common    common :                        -> the four most frequent nouns of a list
    frequent  frequent :                      -> its three most frequent, in that order
    quote     repeat from the A N V           -> x1 .. xk . and the text that follows
    repeat    repeat :                        -> the context, word for word

A is an adjective, N a noun, V a verb and x1 .. xk are nouns. (A, N) is the key of a
sentence. Nothing marks a sentence that will be asked about. A question begins like what
it asks about, so that answering it is continuing a text; an answer of several steps
says them, and each looks up what the one before it found.

Text has local structure, so that a model can predict some of it without looking back: a
noun of a value is with probability 1/2 one of eight fixed successors of the noun before
it, else any noun. The filler of sparse contexts is four stock sentences in turn, which
a model that has seen them once can predict word for word.
"""

from dataclasses import dataclass

import numpy as np

from jaxkv.evaluate.words import ADJECTIVES as ADJECTIVES
from jaxkv.evaluate.words import BOS as BOS
from jaxkv.evaluate.words import CHAIN as CHAIN
from jaxkv.evaluate.words import LONGEST as LONGEST
from jaxkv.evaluate.words import NOUNS as NOUNS
from jaxkv.evaluate.words import PAD as PAD
from jaxkv.evaluate.words import SPECIALS as SPECIALS
from jaxkv.evaluate.words import STOCK as STOCK
from jaxkv.evaluate.words import SUCCESSORS as SUCCESSORS
from jaxkv.evaluate.words import UNK as UNK
from jaxkv.evaluate.words import VERBS as VERBS
from jaxkv.evaluate.words import VOCABULARY as VOCABULARY

LINE = (4, LONGEST)
"""A line of a list has so many nouns."""

QUOTED = 16
"""The words of a quotation that are asked for."""


@dataclass(frozen=True)
class Statement:
    """A fact or a link: its key (adjective, noun), its verb and its value."""

    adjective: str
    noun: str
    verb: str
    values: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """(adjective, noun), what tells one fact from another."""
        return self.adjective, self.noun

    @property
    def opening(self) -> str:
        """The words before the value: "the A N V"."""
        return f"the {self.adjective} {self.noun} {self.verb}"

    @property
    def value(self) -> str:
        """The words to be recalled: "x1 .. xk"."""
        return " ".join(self.values)

    @property
    def text(self) -> str:
        """The whole sentence: "the A N V x1 .. xk ."."""
        return f"{self.opening} {self.value} ."


@dataclass(frozen=True)
class Assignment:
    """A variable (adjective, noun) and its value: nouns, or another variable."""

    adjective: str
    noun: str
    values: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """(adjective, noun), the variable."""
        return self.adjective, self.noun

    @property
    def value(self) -> str:
        """The words that it is assigned."""
        return " ".join(self.values)

    @property
    def opening(self) -> str:
        """The words before the value: "let A N be"."""
        return f"let {self.adjective} {self.noun} be"

    @property
    def text(self) -> str:
        """The whole sentence: "let A N be x1 .. xk ."."""
        return f"{self.opening} {self.value} ."


def draw_statement(
    rng: np.random.Generator,
    adjective: str | None = None,
    noun: str | None = None,
    verb: str | None = None,
) -> Statement:
    """A random fact; the words that are given stay as they are."""
    adjective = adjective or pick(rng, ADJECTIVES)
    noun = noun or pick(rng, NOUNS)
    verb = verb or pick(rng, VERBS)
    return Statement(adjective, noun, verb, draw_value(rng, noun))


def draw_value(rng: np.random.Generator, noun: str) -> tuple[str, ...]:
    """One to eight nouns after `noun`: each a successor of the last, or any noun."""
    last = NOUNS.index(noun)
    count = int(rng.integers(1, LONGEST + 1))
    likely, any_noun = rng.random(count), rng.integers(len(NOUNS), size=count)
    place = rng.integers(SUCCESSORS.shape[1], size=count)
    values = []
    for i in range(count):
        last = int(SUCCESSORS[last, place[i]] if likely[i] < CHAIN else any_noun[i])
        values.append(NOUNS[last])
    return tuple(values)


def link(statement: Statement, fact: Statement) -> Statement:
    """`statement`, but that its value names the key of `fact`."""
    return Statement(statement.adjective, statement.noun, statement.verb, fact.key)


def recall(fact: Statement) -> tuple[str, str]:
    """(question, answer) about one statement."""
    return f"recall {fact.opening}", f"{fact.value} ."


def recall_both(first: Statement, second: Statement) -> tuple[str, str]:
    """(question, answer) about two statements of one opening, in order of appearance.

    Raises:
      ValueError: the two statements begin differently.
    """
    if first.opening != second.opening:
        raise ValueError(
            f"recall_both needs two statements that begin alike, not "
            f"{first.opening!r} and {second.opening!r}."
        )
    question = f"recall both {first.opening}"
    return question, f"{first.value} and {second.value} ."


def recall_two(first: Statement, second: Statement) -> tuple[str, str]:
    """(question, answer) about two different statements; `first` is answered first.

    The question names `first` last, so that its value continues the question.
    """
    question = f"recall {second.opening} and {first.opening}"
    return question, f"{first.value} . {second.text}"


def follow(pointer: Statement, fact: Statement) -> tuple[str, str]:
    """(question, answer) about a link and the fact that it leads to."""
    return f"follow {pointer.opening}", f"{pointer.value} . {fact.text}"


def trace(chain: tuple[Assignment, ...]) -> tuple[str, str]:
    """(question, answer) about assignments, each the value of the one before it."""
    rest = "".join(
        f" . {assignment.opening} {assignment.value}" for assignment in chain[1:]
    )
    return f"trace {chain[0].opening}", f"{chain[0].value}{rest} ."


def repeat_from(passage: str) -> tuple[str, str]:
    """(question, answer): four words of a passage, and the 16 after them."""
    words = passage.split()
    return (
        f"repeat from {' '.join(words[:4])}",
        " ".join(words[4 : 4 + QUOTED]),
    )


def repeat() -> str:
    """The question whose answer is the whole context, word for word."""
    return "repeat :"


def pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """One of `words`, each as likely."""
    return words[int(rng.integers(len(words)))]
