"""The step of a training run, compiled for a slice."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxkv.mesh import make_mesh, rows_over
from jaxkv.plan.programs import Program, measure
from jaxkv.plan.topologies import Chip
from jaxkv.train.config import Train
from jaxkv.train.parts import describe
from jaxkv.train.speed import step_flops
from jaxkv.train.step import trace
from pallas_kernels.dispatch import compile_for

KINDS = {
    "state['params']": "parameters",
    "state['optimizer']": "optimizer",
    "fixed['teacher']": "teacher",
    "fixed['frozen']": "frozen parameters",
    "": "batch and counters",
}


@dataclass(frozen=True)
class Training:
    """A run's step, that with most tokens; `needed` FLOPs are the model's."""

    mesh: dict[str, int]
    step: Program
    steps: int
    tokens: int  # of a step
    needed_flops: float  # of all chips, nothing computed twice

    def tokens_per_second(self, chip: Chip) -> float | None:
        """Of the whole slice."""
        seconds = self.step.seconds(chip)
        return None if seconds is None else self.tokens / seconds

    def days(self, chip: Chip) -> float | None:
        """Of all steps, as if each were this one."""
        seconds = self.step.seconds(chip)
        return None if seconds is None else self.steps * seconds / 86400


def plan_training(
    config: Train, devices: Sequence[Any], chip: Chip | None, platform: str = "tpu"
) -> Training:
    """The figures of the run's step on those devices, in the config's mesh.

    Raises:
      ValueError: the mesh does not fit the devices, the parameters or the batches, or
        the step does not fit in the chip's memory.
    """
    mesh = make_mesh(config.mesh, config.axis_types, devices)
    parts = describe(config)
    stages = [stage for _, stage in config.curriculum()]
    for stage in stages:
        stage.feed.check(parts.model, rows_over(mesh) * config.micro)
    stage = max(stages, key=lambda stage: stage.feed.tokens)
    with compile_for(platform), jax.set_mesh(mesh):
        traced = trace(parts, mesh, stage)
        lowered, began = traced.lower(), time.monotonic()
        compiled = fitting(lowered)
        seconds = time.monotonic() - began
    trained = {path: parts.shapes[path] for path in parts.trained}
    shapes = stage.feed.shapes_of_step
    return Training(
        {axis: size for axis, size in mesh.shape.items()},
        measure("step", traced, compiled, seconds, KINDS, mesh, chip),
        config.total,
        stage.feed.tokens,
        step_flops(parts.model, shapes, trained, parts.teacher_model),
    )


def fitting(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The compiled program.

    Raises:
      ValueError: XLA finds that it does not fit in a chip's memory; says by how much.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory" not in str(error):
            raise
        first = next(x for x in str(error).splitlines() if "RESOURCE_EXHAUSTED" in x)
        raise ValueError(
            "The program does not fit in a chip's memory "
            f"({first.split(': ', 1)[-1]}); "
            "split more over the mesh (fsdp, tensor), or take fewer rows at once "
            "(micro, batch), or keep less for the backward pass (remat full)."
        ) from None
