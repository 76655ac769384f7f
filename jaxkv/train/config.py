"""Train: everything that a training run depends on, as data."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from jaxkv.models.config import DecoderConfig
from jaxkv.train.add_ons.base import AddOn
from jaxkv.train.feeding import Documents, Feed
from jaxkv.train.forward import REMAT
from jaxkv.train.guard import Guard
from jaxkv.train.objectives import CrossEntropy, Objective
from jaxkv.train.optimizers import AdamW, Optimizer

PACKAGE = "jaxkv.configs.train"


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: `steps` steps, each on what `feed` gives."""

    steps: int
    feed: Feed = field(default_factory=Documents)


@dataclass(frozen=True)
class Train:
    """One training run.

    Attributes:
      model: fresh weights of this shape; or a model by name, "demo" or a folder.
      stages: what it is trained on, one after another.
      objectives: what is minimised, by their weights.
      teacher: whom objectives compare with: a model by name, or "itself", the model as
        it is before training; None for none.
      add_on: what is added to the model.
      trainable: patterns of paths, "*" for all or "layers.*.attention.*" or "add_on.*";
        what fits none is frozen, and has neither gradient nor optimizer state.
      optimizer: with its learning rate over the steps.
      micro: parts that a step's rows are split into, one after another.
      remat: what a layer keeps for the backward pass: none (all but gathered weights),
        dots, dots_without_batch, full (nothing).
      unrolled: on one device, layers one after another in the program, and no loop:
        longer to compile, and faster for small models (the demo's steps on an H200 by a
        quarter, those with a teacher by two fifths).
      dtype: of the forward and backward pass and of what is frozen; trained parameters,
        their gradients and the loss are float32.
      mesh: "data=2,fsdp=4", or auto: all devices on fsdp.
      axis_types: auto or explicit, JAX's axis types.
      save_every: steps between two checkpoints.
      keep_last: how many of the newest checkpoints stay, 2 at least, so that one is
        whole while the next is written.
      keep_every: checkpoints of steps that this divides stay for good; None for none.
      guard: what is done about losses that are no numbers, or far too large.
      steps: at most so many of the stages' steps, and the schedules are of those.
      minutes: stop at the first log after so long, whole or not.

    Raises:
      ValueError: a count is too small, a name unknown, or documents do not fit a model.
    """

    model: DecoderConfig | str
    stages: tuple[Stage, ...]
    objectives: tuple[Objective, ...] = (CrossEntropy(),)
    teacher: str | None = None
    add_on: AddOn | None = None
    trainable: tuple[str, ...] = ("*",)
    optimizer: Optimizer = field(default_factory=AdamW)
    micro: int = 1
    remat: str = "none"
    unrolled: bool = False
    dtype: str = "bfloat16"
    mesh: str = "auto"
    axis_types: str = "auto"
    guard: Guard = field(default_factory=Guard)
    seed: int = 0
    save_every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    log_every: int = 50
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        counts = {"micro": self.micro, "log_every": self.log_every}
        counts |= {"save_every": self.save_every, "steps": self.total}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}={count}; give one at least.")
        if self.keep_last < 2:
            raise ValueError(f"keep_last={self.keep_last}; give two at least.")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(
                f"keep_every={self.keep_every}; give one at least, or None."
            )
        if not self.objectives or not self.trainable:
            raise ValueError("A run needs an objective and something trainable.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; give one of {', '.join(REMAT)}.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"dtype={self.dtype!r}; give float32, bfloat16 or float16."
            )
        if isinstance(self.model, DecoderConfig):
            for _, stage in self.curriculum():
                stage.feed.check(self.model, 1)

    @property
    def total(self) -> int:
        """Steps of the run."""
        every = sum(stage.steps for stage in self.stages)
        return every if self.steps is None else min(self.steps, every)

    def curriculum(self) -> Iterator[tuple[int, Stage]]:
        """(the number of its first step, a stage), cut to the run's steps."""
        first = 0
        for stage in self.stages:
            left = min(stage.steps, self.total - first)
            if left > 0:
                yield first, replace(stage, steps=left)
            first += stage.steps


def known() -> list[str]:
    """The names under `configs/train`."""
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return []
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name_or_file: str) -> Train:
    """The `TRAIN` of `jaxkv.configs.train.NAME`, or of a .py file.

    Raises:
      ValueError: there is no such name or file, or it holds no TRAIN.
    """
    if name_or_file.endswith(".py"):
        module = _from_file(Path(name_or_file))
    elif name_or_file in known():
        module = importlib.import_module(f"{PACKAGE}.{name_or_file}")
    else:
        names = ", ".join(known()) or "none; give a .py file"
        raise ValueError(f"No training run named {name_or_file!r}; known: {names}.")
    config = vars(module).get("TRAIN")
    if not isinstance(config, Train):
        raise ValueError(f"{name_or_file} holds no constant TRAIN = Train(...).")
    return config


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
