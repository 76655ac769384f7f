"""Objective, and the record of what student and teacher gave that it looks at."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxkv.train.forward import Forward
from jaxkv.train.schedules import Rate, Schedule


class Gave(NamedTuple):
    """Of a micro-batch; the weights of all of a step's micro-batches sum to 1."""

    batch: Mapping[str, Array]  # as it was drawn
    target: Int[Array, "B T"]  # the token after each
    weight: Float[Array, "B T"]  # of predicting it, fp32
    student: Forward
    teacher: Forward | None


class Value(NamedTuple):
    """An objective's share of its mean, and counts to log.

    Counts are pairs (sum, of how much), to be added up and divided.
    """

    sum: Float[Array, ""]
    counts: Mapping[str, Float[Array, " 2"]] = {}


@dataclass(frozen=True)
class Objective(ABC):
    """A frozen dataclass with one `__call__`; `weight` scales it in the loss."""

    weight: float | Schedule = field(default=1.0, kw_only=True)

    @abstractmethod
    def __call__(self, gave: Gave) -> Value:
        """The sum over tokens of weight times its term, fp32."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with a teacher."""
        return False

    @property
    def looks(self) -> frozenset[str]:
        """What it reads of the layers: "layers", "attended" (`forward`)."""
        return frozenset()

    def weight_at(self, steps: int) -> Rate:
        """Its weight as a function of a step's number."""
        weight = self.weight
        if not isinstance(weight, Schedule):
            return lambda number: jnp.float32(weight)
        rate = weight(steps)

        def at(number: ArrayLike) -> Array:
            # Optax mixes whole numbers and fractions, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                return jnp.asarray(rate(number), jnp.float32)

        return at


@dataclass(frozen=True)
class Imitation(Objective):
    """An objective that compares with a teacher."""

    @property
    def needs_teacher(self) -> bool:
        return True


def targets(
    batch: Mapping[str, Array],
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """(the token after each, the weight of predicting it: 0 across segments).

    The last place predicts nothing. Keeping it keeps the length a multiple of the
    attention kernels' tiles.
    """
    target_BT, weight_BT = (
        jnp.roll(batch[x], -1, axis=1) for x in ("tokens", "weight")
    )
    place_T = jnp.arange(target_BT.shape[1])
    within_BT = (place_T < place_T.size - 1)[None]
    if "segment" in batch:
        segment_BT = batch["segment"]
        within_BT = within_BT & (jnp.roll(segment_BT, -1, axis=1) == segment_BT)
    return target_BT, jnp.where(within_BT, weight_BT, 0.0)


def weighted_squares(
    ours: Float[Array, "*L B T _"], theirs: Float[Array, "*L B T _"], gave: Gave
) -> Float[Array, ""]:
    """The sum over tokens of weight * mean((ours - theirs)^2), fp32.

    The mean is over layers too, where there is such an axis. Theirs are constant.
    """
    theirs = jax.lax.stop_gradient(theirs)
    square = jnp.square((ours - theirs).astype(jnp.float32))
    square_BT = square.mean(axis=(*range(square.ndim - 3), -1))
    return (square_BT * gave.weight).sum()
