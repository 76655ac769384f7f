"""Optimizers of optax, by name and with typed settings.

Each clips the gradient's global norm first, and gives vectors (norms' scales) no decay.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from jaxkv.params import Params
from jaxkv.train.schedules import Rate, Schedule, WarmupCosine


@dataclass(frozen=True)
class Optimizer(ABC):
    """What every optimizer has.

    Attributes:
      rate: the learning rate over the steps.
      clip: the gradient's global norm at most; None for any.
      within: what parameters are clipped to after each step; None for nothing.
    """

    rate: Schedule = field(default_factory=WarmupCosine)
    clip: float | None = 1.0
    within: tuple[float, float] | None = None

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Optax's, for a run of so many steps; its parameters are a dict by path."""
        update = self.update(self.rate(steps))
        if self.clip is None:
            return update
        return optax.chain(optax.clip_by_global_norm(self.clip), update)

    @abstractmethod
    def update(self, rate: Rate) -> optax.GradientTransformation:
        """The optimizer proper."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.05

    def update(self, rate: Rate) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_matrices,
        )


@dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a momentum (arXiv 2302.06675); one array a parameter."""

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.1

    def update(self, rate: Rate) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, None, self.weight_decay, _matrices)


@dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonal updates of the layers' matrices (Jordan 2024); Adam for all else."""

    beta: float = 0.95
    weight_decay: float = 0.05
    adam_b1: float = 0.9
    adam_b2: float = 0.98

    def update(self, rate: Rate) -> optax.GradientTransformation:
        return optax.contrib.muon(
            rate,
            beta=self.beta,
            weight_decay=self.weight_decay,
            weight_decay_mask=_matrices,
            adam_b1=self.adam_b1,
            adam_b2=self.adam_b2,
            muon_weight_dimension_numbers=_as_matrices,
        )


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum."""

    momentum: float | None = 0.9
    nesterov: bool = False

    def update(self, rate: Rate) -> optax.GradientTransformation:
        return optax.sgd(rate, self.momentum, self.nesterov)


def _matrices(params: Params) -> PyTree[bool]:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _as_matrices(params: Any) -> Any:
    """Which axes of a parameter are a matrix's rows and columns; others are many."""
    by_name = {"qkv": (0, 3), "out": ((0, 1, 2), 3), "gate_up": (0, 2), "down": (0, 1)}
    found = {path: by_name.get(path.rpartition(".")[2]) for path in params}
    dimensions = optax.contrib.MuonDimensionNumbers
    return {path: axes and dimensions(*axes) for path, axes in found.items()}
