"""What changes over the steps of a run: learning rates, and objectives' weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import optax
from jax.typing import ArrayLike

Rate = Callable[[ArrayLike], ArrayLike]


class Schedule(ABC):
    """A frozen dataclass; called with the steps of the run, it gives optax's schedule.

    Such is a function of a step's number, from 0.
    """

    @abstractmethod
    def __call__(self, steps: int) -> Rate: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """The same at every step."""

    value: float

    def __call__(self, steps: int) -> Rate:
        return optax.constant_schedule(self.value)


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """From 0 up to `peak` in `warmup` steps, then along a cosine to `final` of it."""

    peak: float = 1.5e-3
    warmup: int = 200
    final: float = 0.02

    def __call__(self, steps: int) -> Rate:
        return optax.warmup_cosine_decay_schedule(
            0.0, self.peak, min(self.warmup, steps - 1), steps, self.peak * self.final
        )


@dataclass(frozen=True)
class Linear(Schedule):
    """From `first` to `last` in a straight line, over a `share` of the steps."""

    first: float
    last: float
    share: float = 1.0

    def __call__(self, steps: int) -> Rate:
        over = max(round(steps * self.share), 1)
        return optax.linear_schedule(self.first, self.last, over)


@dataclass(frozen=True)
class RiseStayFall(Schedule):
    """Up from 0 in the first `share` of the steps, down to `final` in the last one."""

    peak: float
    share: float = 0.2
    final: float = 0.1

    def __call__(self, steps: int) -> Rate:
        part = max(int(steps * self.share), 1)
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.peak, part),
                optax.constant_schedule(self.peak),
                optax.linear_schedule(self.peak, self.peak * self.final, part),
            ],
            [part, steps - part],
        )
