"""Recipe: what training documents are made of, as data."""

from dataclasses import dataclass

STATEMENT, AGAIN, ONE, BOTH, TWO = range(5)
"""The kinds of a document's segments; see `jaxkv.train.documents`."""


@dataclass(frozen=True)
class Recipe:
    """What documents are made of: shares, and ranges that rows draw theirs from.

    Attributes:
      again: range of the share of a row's segments that repeat an earlier statement.
      phase: range of where the phase of questions begins, as a share of the row.
      phases: share of rows that have such a phase.
      asked: share of segments that ask, (before the phase, in it).
      kinds: shares of the questions one, both, two.
      seconds: range of the share of statements that try to give a key its second value.
      whole: share of rows whose keys come from all words, not from a small subset.
      repeats: share of rows that are "repeat :" and their first half.
      gaps: share of rows whose positions jump ahead between segments.
      max_position: positions stay below it.
      rest: weight of a word that is not recalled; recalled words weigh 1.
    """

    again: tuple[float, float] = (0.1, 0.5)
    phase: tuple[float, float] = (0.3, 0.9)
    phases: float = 0.85
    asked: tuple[float, float] = (0.05, 0.95)
    kinds: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seconds: tuple[float, float] = (0.0, 0.3)
    whole: float = 0.25
    repeats: float = 0.1
    gaps: float = 0.3
    max_position: int = 8192
    rest: float = 0.2
