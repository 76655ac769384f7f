"""Entrants: the rows of a comparison, each a method at a keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from jaxkv.calibrate.kinds import Progress
from jaxkv.calibrate.store import calibration
from jaxkv.configs.evals.core import SUITE
from jaxkv.method import Method, method, names
from jaxkv.models.decoder import Decoder

Named = str | tuple[str, Method]  # a row that ships, or one's own


@dataclass(frozen=True)
class Entrant:
    """A method as it was named, at one keep."""

    name: str
    method: Method
    missing: str = ""  # what the model lacks that it reads

    @property
    def keep(self) -> float:
        """Slots a head, as a fraction of the prompt."""
        return self.method.keep

    def excuse(self, length: int) -> str:
        """Why it cannot take part with prompts of `length` tokens; empty if it can."""
        if self.missing:
            return self.missing
        needed = self.method.minimum(length)
        if needed <= max(1.0, self.keep * length + 1e-6):
            return ""
        return f"holds {needed} slots at least, keep {needed / length:.3f}"


def entrants(
    methods: Sequence[Named] | Mapping[str, Method] | None, keep: Sequence[float]
) -> tuple[Entrant, ...]:
    """Each of `methods` at each keep; `full` has one, of 1.

    None and "core" are those of configs/evals/core.py, "all" all that ship, `full`
    first; the rest are names, as `method` takes them, and names with methods of one's
    own.

    Raises ValueError, one sentence, for an unknown method or parameter, a bad keep, or
    two methods of one name.
    """
    if not keep:
        raise ValueError("There is no keep to compare at; give one at least.")
    given = ["core"] if methods is None else methods
    found: dict[Entrant, None] = {}
    for one in given.items() if isinstance(given, Mapping) else given:
        for name, own in _named(one):
            for k in keep:
                row = _at(name, own, k)
                found[Entrant(name, row)] = None
    if not found:
        raise ValueError("There is no method to compare; name one at least.")
    taken: dict[tuple[str, float], Entrant] = {}
    for entrant in found:
        if taken.setdefault((entrant.name, entrant.keep), entrant) != entrant:
            raise ValueError(
                f"Two methods are called {entrant.name!r}; name one another way."
            )
    return tuple(found)


def calibrated(
    rows: Sequence[Entrant],
    model: Decoder,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
) -> tuple[Entrant, ...]:
    """The rows, and which of them the model has no calibration for.

    What can be made without training is made; progress is called with (done, total,
    what) while it is.
    """

    def missing(row: Entrant) -> str:
        try:
            for kind in row.method.calibrations:
                calibration(model, kind, tokenizer=tokenizer, progress=progress)
        except ValueError as error:
            return str(error)
        return ""

    return tuple(replace(row, missing=missing(row)) for row in rows)


def _named(one: Named) -> list[tuple[str, Method | None]]:
    if isinstance(one, tuple):
        return [one]
    if one == "core":
        return [(name, None) for name in SUITE.methods]
    if one == "all":
        return [(n, None) for n in sorted(names(), key=lambda n: (n != "full", n))]
    return [(one, None)]


def _at(name: str, own: Method | None, keep: float) -> Method:
    """The method at `keep`; one that keeps everything anyway has a keep of 1."""
    row = method(name, keep=keep) if own is None else replace(own, keep=keep)
    if not 0 < keep <= 1:
        raise ValueError(
            f"keep={keep} is not a fraction of the prompt; "
            "give one above 0 and up to 1."
        )
    return replace(row, keep=1.0) if row.slots(1000) == 1000 else row
