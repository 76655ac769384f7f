"""Method: a published method as a row of parts.

    METHOD = Method(score=WindowAttention(window=32, pool=7), budget=Uniform(), ...)

A row lives in configs/methods/<name>.py. `method(name, keep=..., window=...)` gives the
row with a budget and, where asked, other parameters of its parts.
"""

import abc
import dataclasses
import difflib
import importlib
import pkgutil
import re
from dataclasses import dataclass

from jaxtyping import Array, Bool, Float, Int

from jaxkv.seen import Seen


class Score(abc.ABC):
    """Which tokens matter. Higher means keep."""

    @property
    def queries(self) -> int:
        """How many of the last queries it looks at."""
        return 0

    @abc.abstractmethod
    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        """Scores in fp32; those of padding are never looked at."""

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """Tokens that stay whatever their score."""
        return seen.valid & False

    def minimum(self, length: int) -> int:
        """Slots a head needs for what is protected, in a prompt of `length` tokens."""
        return 0


class Budget(abc.ABC):
    """How many slots each head gets."""

    @abc.abstractmethod
    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, "B S"],
        candidate: Bool[Array, "B S"],
        slots: Int[Array, " B"],
    ) -> Int[Array, "B J R"]:
        """Slots a head, protected ones counted; they sum to R * slots in each group.

        candidate: tokens that may be kept and are not protected.
        """

    def average(self, slots: int, length: int) -> int:
        """Slots a head gets on average when the method's budget is `slots`."""
        return slots

    def most(self, slots: int, length: int) -> int:
        """The most slots that one head can get."""
        return slots


class Select(abc.ABC):
    """Scores and budgets to an order of slots, best first."""

    @abc.abstractmethod
    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, "B S"],
        candidate: Bool[Array, "B S"],
        slots: Int[Array, "B K"],
    ) -> Int[Array, "B K S"]:
        """Token indices: the protected, then candidates, then what cannot be kept.

        slots: each head's budget, protected ones counted.
        """


@dataclass(frozen=True)
class Method:
    """A row: which tokens matter, how many slots each head gets, which slots those are.

    What is not kept is dropped, entries are stored as they are, a query reads all
    pages, and it happens once, at the end of prefill.
    """

    score: Score
    budget: Budget
    select: Select
    keep: float = 1.0  # slots a head, as a fraction of the row's own prompt

    def slots(self, length: int) -> int:
        """Slots a head for a prompt of `length` tokens: floor(keep * length), or 1.

        Never fewer than what the method protects, nor more than the prompt.
        """
        # A product such as 0.29 * 100 falls a hair short of the whole number it means.
        asked = max(1, int(self.keep * length + 1e-6))
        asked = max(asked, self.score.minimum(length))
        return min(length, self.budget.average(asked, length))


def names() -> list[str]:
    """The rows that jaxkv ships, by name."""
    import jaxkv.configs.methods as rows

    return sorted(m.name for m in pkgutil.iter_modules(rows.__path__))


def method(name: str, keep: float | None = None, **parameters: object) -> Method:
    """The row `name`, with a budget and other parameters.

    `name` may carry parameters itself: "snapkv(window=64, pool=5)". A parameter is set
    in every part of the row that has a field of that name. Raises ValueError, in one
    sentence, for an unknown row or parameter or a keep outside (0, 1].
    """
    base, inline = _parse(name)
    if base not in names():
        close = difflib.get_close_matches(base, names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"There is no method {base!r}{hint} (methods: {', '.join(names())})."
        )
    row = importlib.import_module(f"jaxkv.configs.methods.{base}").METHOD
    for parameter, value in {**inline, **parameters}.items():
        row = _with_parameter(row, base, parameter, value)
    if keep is None:
        return row
    if not 0 < keep <= 1:
        raise ValueError(
            f"keep={keep} is not a fraction of the prompt; "
            "give one above 0 and up to 1."
        )
    return dataclasses.replace(row, keep=float(keep))


def parameters(row: Method) -> dict[str, object]:
    """Every parameter of a row's parts and its value."""
    found = {}
    for part in (row.score, row.budget, row.select):
        # pyrefly: ignore[bad-argument-type] - every part is a dataclass
        for field in dataclasses.fields(part):
            found[field.name] = getattr(part, field.name)
    return found


def _with_parameter(row: Method, name: str, parameter: str, value: object) -> Method:
    known = parameters(row)
    if parameter not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise ValueError(
            f"Method {name!r} has no parameter {parameter!r} (it has: {listed})."
        )
    wanted = type(known[parameter])
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(
            f"Method {name!r}: {parameter}={value!r} is not of type {wanted.__name__}."
        )
    changed = {}
    for role in ("score", "budget", "select"):
        part = getattr(row, role)
        if parameter in {field.name for field in dataclasses.fields(part)}:
            changed[role] = dataclasses.replace(part, **{parameter: value})
    return dataclasses.replace(row, **changed)


def _parse(name: str) -> tuple[str, dict[str, object]]:
    """Splits "snapkv(window=64, pool=5)" into the row and its parameters."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", name)
    if match is None:
        raise ValueError(
            f"{name!r} is not a method; write a name, or a name with parameters such "
            "as 'snapkv(window=64, pool=5)'."
        )
    found = {}
    for item in filter(None, (match[2] or "").split(",")):
        parameter, equals, text = (x.strip() for x in item.partition("="))
        if not (parameter and equals and text):
            raise ValueError(f"In {name!r}, {item.strip()!r} is not parameter=value.")
        found[parameter] = _value(text)
    return match[1], found


def _value(text: str) -> object:
    """A whole number, a number, true or false, else the word itself."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
