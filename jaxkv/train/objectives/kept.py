"""Budget penalties: how much of the cache an add-on keeps."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.train.objectives.base import Gave, Objective, Value


@dataclass(frozen=True)
class MeanKept(Objective):
    """value = mean |alpha|: the L1 norm of the gates (DuoAttention, 2410.10819)."""

    def __call__(self, gave: Gave) -> Value:
        return Value(jnp.abs(_kept(gave)).mean() * gave.weight.sum())


@dataclass(frozen=True)
class KeptAbove(Objective):
    """value = max(mean alpha - target, 0): one-sided, so that keeping less costs none.

    Dynamic Memory Compression's (arXiv 2403.09636), whose `target` is 1 over the
    compression ratio; its ratio that grows over the run is `weight` here.
    """

    target: float = 0.25

    def __call__(self, gave: Gave) -> Value:
        above = jnp.maximum(_kept(gave).mean() - self.target, 0.0)
        return Value(above * gave.weight.sum())


def _kept(gave: Gave) -> Float[Array, "..."]:
    if gave.student.kept is None:
        raise ValueError(
            "A budget's penalty needs an add-on that says how much it keeps, and this "
            "run has none; give it one, such as Gates."
        )
    return gave.student.kept.astype(jnp.float32)
