"""The parts of a method: five verbs, an abstract class for each.

    score   which tokens matter            Score
    budget  how many slots                 Budget
    select  scores and budgets to slots    Select
    merge   what the kept inherit          Merge, which drops by itself
    cache   what a slot holds              Store, which stores by itself what was made

A part is a frozen dataclass with one `__call__`. What it needs beside the record that
it is called with, it states as a property, and generate.py provides it.
"""

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkv.feeds import Future, Repeat
from jaxkv.heads import Heads
from jaxkv.held import Held
from jaxkv.kept import Kept
from jaxkv.models.sizes import Sizes
from jaxkv.seen import Seen

if TYPE_CHECKING:
    from jaxkv.cache.pages import Pages
    from jaxkv.method import Method


class Score(abc.ABC):
    """Which tokens matter. Higher means keep."""

    @property
    def queries(self) -> int:
        """How many of the last queries it looks at."""
        return 0

    @property
    def calibration(self) -> str | None:
        """The kind of calibration that it reads in `seen.calibration`, if any."""
        return None

    @property
    def lse(self) -> bool:
        """Whether `seen.lse` spares it work; it must do without where there is none."""
        return False

    def against(self, sizes: Sizes) -> str | None:
        """Why it does not score what a layer of such sizes caches, if it does not."""
        looks = self.queries or self.every_query or self.feed is not None
        if sizes.absorbed or not looks:
            return None
        return (
            "weighs tokens by the attention to rotated keys, and those cached are not"
        )

    @property
    def every_query(self) -> bool:
        """Whether it looks at `seen.every_q`."""
        return False

    @property
    def feed(self) -> Repeat | Future | None:
        """What must run against the full cache before it can score, if anything."""
        return None

    @abc.abstractmethod
    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        """Scores in fp32; those of padding are never looked at."""

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """Tokens that stay whatever their score."""
        return seen.valid & False

    def minimum(self, length: int) -> int:
        """Slots a head needs for what is protected, in a prompt of `length` tokens."""
        return 0

    def carried(self, scores: Float[Array, "B K S"]) -> dict[str, Array]:
        """What travels with each slot, by name, in rows that evict at every step."""
        return {}

    def again(
        self, held: Held
    ) -> tuple[Float[Array, "B J R C"], Bool[Array, "B J R C"], dict[str, Array]]:
        """New scores of held slots, which of them are protected, what they carry now.

        Only rows that evict at every step ask. Raises ValueError where it has none.
        """
        raise ValueError(
            f"{type(self).__name__} cannot score the slots of a cache again; use it "
            'with when="prefill".'
        )


class Budget(abc.ABC):
    """How many slots each head gets."""

    @property
    def calibration(self) -> str | None:
        """The kind of calibration that it reads in `heads.calibration`, if any."""
        return None

    def against(self, sizes: Sizes) -> str | None:
        """Why it has no slots for the rows of a layer of such sizes, if it has none."""
        return None

    @property
    def model_wide(self) -> bool:
        """Whether the heads of all layers share one budget, and not those of one."""
        return False

    def heads(self, slots: int, length: int, heads: Heads) -> np.ndarray:
        """[L, K] slots of every head before a score is seen: `slots` each."""
        return np.full((heads.layers, heads.kv_heads), slots)

    def bound(self, method: "Method", longest: int, heads: Heads) -> np.ndarray:
        """[L, K] slots whose sum over a layer no prompt of up to `longest` exceeds.

        Pools get their static sizes from it.
        """
        return self.heads(method.slots(longest), longest, heads)

    def limits(self, slots: int, length: int, heads: Heads) -> np.ndarray:
        """[L, K] slots that a head may hold for good, where every step evicts."""
        return self.heads(slots, length, heads)

    @abc.abstractmethod
    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, " B #J #R S"],
        candidate: Bool[Array, " B #J #R S"],
        slots: Int[Array, "B J R"],
    ) -> Int[Array, "B J R"]:
        """Slots a head, protected ones counted; they sum to those given in each group.

        slots: as `heads` gave them. candidate: may be kept and is not protected. Masks
        have one row for all heads that have the same tokens.
        """

    def average(self, slots: int, length: int) -> int:
        """Slots a head gets on average when the method's budget is `slots`."""
        return slots

    def most(self, slots: int, length: int) -> int:
        """The most slots that one head can get."""
        return slots

    def minimum(self, length: int) -> int:
        """Slots a head gets on average at least, in a prompt of `length` tokens."""
        return 0


class Select(abc.ABC):
    """Scores and budgets to an order of slots, best first."""

    @property
    def looks_at_out(self) -> bool:
        """Whether it looks at `seen.out`."""
        return False

    @abc.abstractmethod
    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        """Token indices: the protected, then candidates, then what cannot be kept.

        slots: each head's budget, protected ones counted. most: slots that no head has
        more of, so that only the first `most` indices are needed; all where not given.
        Masks have one row for all heads that have the same tokens.
        """

    def spared(
        self, position: Int[Array, "B J R C"], slots: Int[Array, "B J R"]
    ) -> Bool[Array, "B J R C"]:
        """Held slots that a step's eviction passes over whatever their score."""
        return position < -1


@dataclass(frozen=True)
class Merge:
    """What the kept inherit from the dropped; by itself nothing."""

    @property
    def adds(self) -> bool:
        """Whether there are slots then that are no tokens."""
        return False

    def against(self, sizes: Sizes) -> str | None:
        """Why it does not merge what a layer of such sizes caches, if it does not."""
        if sizes.absorbed or not self.adds:
            return None
        return "joins rotated keys of several positions, and those cached are not"

    def __call__(self, seen: Seen, kept: Kept) -> Kept:
        """The kept slots, with what the dropped leave them."""
        return kept


@dataclass(frozen=True)
class Store:
    """What a slot holds; by itself the entry as it was made."""

    @property
    def moves(self) -> bool:
        """Whether keys are then stored as of other positions than their tokens'."""
        return False

    def against(self, sizes: Sizes) -> str | None:
        """Why it does not hold what a layer of such sizes caches, if it does not."""
        if sizes.turned or not self.moves:
            return None
        return (
            "turns stored keys to other positions, and in the bases of such keys no "
            "numbers are the pairs that RoPE turns"
        )

    def __call__(self, seen: Seen, kept: Kept) -> Kept:
        """The kept slots as they are to be stored."""
        return kept

    def again(
        self, pages: "Pages", inverse_frequencies: Float[Array, " half"]
    ) -> "Pages":
        """One layer's pages after an eviction, where entries follow what is held."""
        return pages
