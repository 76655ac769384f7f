"""Recipe: what training documents are made of, as data."""

from dataclasses import dataclass

FACT, LINK, LET, NOTE, FILLER, AGAIN, ONE, BOTH, TWO, FOLLOW, TRACE, TALLY = range(12)
"""The kinds of a document's segments; see `jaxkv.train.documents`."""

FAMILIES = ("needle", "follow", "trace", "tally", "quote")
"""What answers are counted by."""


@dataclass(frozen=True)
class Recipe:
    """What documents are made of: shares, and ranges that rows draw theirs from.

    Attributes:
      plain: weights of fact, link, assignment, note and filler; a row's own are these
        times a power of a random number, so that most rows have a favourite.
      purity: range of that power.
      sparse: share of rows that are filler but for a few sentences.
      stock: range of the share of filler in those.
      runs: filler and sentences take turns by so many segments, at most.
      again: range of the share of a row's statements that repeat an earlier one.
      phase: range of where the phase of questions begins, as a share of the row.
      phases: share of rows that have such a phase.
      asked: share of segments that ask, (before the phase, in it).
      kinds: shares one, both, two of the questions about facts.
      seconds: range of the share of facts that try to give a key its second value.
      whole: share of rows whose keys come from all words, not from a small subset.
      lists: share of rows that are mostly a list, but for filler.
      listed: range of where a row's list ends and is asked about, as a share of it.
      repeats: share of rows whose second half repeats parts of the first.
      gaps: share of rows whose positions jump ahead between segments.
      max_position: positions stay below it.
      rest: weight of a word that is not recalled; recalled words weigh 1.
      tallied: weight of a word of a tally, of which a row has four at most.
    """

    plain: tuple[float, float, float, float, float] = (1.0, 0.8, 1.0, 0.2, 0.4)
    purity: tuple[float, float] = (2.0, 12.0)
    sparse: float = 0.2
    stock: tuple[float, float] = (0.7, 0.97)
    runs: int = 4
    again: tuple[float, float] = (0.0, 0.4)
    phase: tuple[float, float] = (0.3, 0.9)
    phases: float = 0.85
    asked: tuple[float, float] = (0.05, 0.95)
    kinds: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seconds: tuple[float, float] = (0.0, 0.5)
    whole: float = 0.25
    lists: float = 0.15
    listed: tuple[float, float] = (0.4, 0.9)
    repeats: float = 0.25
    gaps: float = 0.3
    max_position: int = 8192
    rest: float = 0.2
    tallied: float = 2.0
