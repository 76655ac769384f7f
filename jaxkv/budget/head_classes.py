"""Some heads keep everything, the others sinks and recents: by what heads do."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkv.cache.cache import NEVER
from jaxkv.heads import Heads
from jaxkv.method import Method
from jaxkv.models.sizes import Sizes
from jaxkv.parts import Budget


@dataclass(frozen=True)
class HeadClasses(Budget):
    """The F best heads of all layers keep every token, the others n slots:

        n = sinks + max(recent, ceil(share T)) + (1 with compensation)
        F = floor(L K (slots - n) / (T - n))

    so that the mean over all heads is `slots` at most; rounding F down leaves less than
    (T - n) / (L K) of it unused. n is the least a head holds; a prompt of no more than
    n tokens has no full heads, and all heads hold all of it. Which heads are best:

        by "induction"  RazorAttention (arXiv 2407.15891): heads are ranked by their
                        induction and by their echo scores, and 14 are taken by the one
                        for each 1 by the other (the paper's 14 % and 1 %)
        by "gate"       DuoAttention (arXiv 2410.10819): the learned gates

    A head that becomes full as its prompt goes on keeps all that it still holds. Ties
    go to the lower layer and head. sinks and recent are the score's too.
    """

    by: str = "induction"
    sinks: int = 4
    recent: int = 64
    share: float = 0.0
    compensation: bool = False

    def __post_init__(self) -> None:
        if self.by not in KINDS:
            raise ValueError(f"by={self.by!r} is none of {', '.join(KINDS)}.")
        if self.sinks < 0 or self.recent < 1 or not 0 <= self.share < 1:
            raise ValueError(
                f"sinks={self.sinks}, recent={self.recent}, share={self.share}: give "
                "0 or more, 1 or more, and a fraction below 1."
            )

    @property
    def calibration(self) -> str:
        return KINDS[self.by]

    def minimum(self, length: int) -> int:
        return min(self._local(length), length)

    def against(self, sizes: Sizes) -> str | None:
        if sizes.by_head:
            return None
        return "tells kv heads apart, and a layer of latents has one row for all heads"

    def heads(self, slots: int, length: int, heads: Heads) -> np.ndarray:
        full = self._full(slots, length, heads)
        return np.where(full, length, self.minimum(length))

    def limits(self, slots: int, length: int, heads: Heads) -> np.ndarray:
        full = self._full(slots, length, heads)
        return np.where(full, NEVER, self._local(length))

    def bound(self, method: Method, longest: int, heads: Heads) -> np.ndarray:
        """As many full heads as any length has, all of the longest."""
        most = max(
            self._count(method.slots(n), n, heads) for n in range(1, longest + 1)
        )
        full = self.ranks(heads) < most
        return np.where(full, longest, self.minimum(longest))

    def most(self, slots: int, length: int) -> int:
        return length

    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, " B #J #R S"],
        candidate: Bool[Array, " B #J #R S"],
        slots: Int[Array, "B J R"],
    ) -> Int[Array, "B J R"]:
        return slots

    def _local(self, length: int) -> int:
        """n."""
        share = math.ceil(self.share * length - 1e-6)
        return self.sinks + max(self.recent, share) + int(self.compensation)

    def _count(self, slots: int, length: int, heads: Heads) -> int:
        """F."""
        every, n = heads.layers * heads.kv_heads, self.minimum(length)
        if n >= length:
            return 0  # all hold the whole prompt as it is
        return max(every * (min(slots, length) - n) // (length - n), 0)

    def _full(self, slots: int, length: int, heads: Heads) -> np.ndarray:
        return self.ranks(heads) < self._count(slots, length, heads)

    def ranks(self, heads: Heads) -> np.ndarray:
        """[L, K] each head's place, 0 = the first to keep everything."""
        found = heads.calibration[self.calibration]
        if self.by == "gate":
            return _place(found["gate"])
        induction, echo = _place(found["induction"]), _place(found["echo"])
        # The heads in the order in which growing shares of 14 : 1 reach them.
        return _place(-np.minimum((induction + 1) / 14.0, echo + 1.0))


KINDS = {"induction": "head_classes", "gate": "gates"}


def _place(score: np.ndarray) -> np.ndarray:
    """Where each entry stands, highest first."""
    order = np.argsort(-score.ravel(), kind="stable")
    place = np.empty(order.size, int)
    place[order] = np.arange(order.size)
    return place.reshape(score.shape)
