"""Train and TrainGates: everything that a training run depends on, as data."""

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from jaxkv.evaluate.language import VOCABULARY
from jaxkv.models.config import DecoderConfig
from jaxkv.train.recipe import Recipe

PACKAGE = "jaxkv.configs.train"


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: `steps` steps, each on all of `shapes`."""

    steps: int
    shapes: tuple[tuple[int, int], ...]  # (rows, length) of each batch in a step
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return sum(rows * length for rows, length in self.shapes)


@dataclass(frozen=True)
class Train:
    """One training run of a decoder on documents drawn as it goes.

    The learning rate rises for `warmup` steps to `learning_rate` and falls along a
    cosine to `final` of it at the last step of the last stage.

    Raises:
      ValueError: the vocabulary is not the language's, or a document does not fit.
    """

    model: DecoderConfig
    stages: tuple[Stage, ...]
    learning_rate: float = 1.5e-3
    warmup: int = 200
    final: float = 0.02
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.05
    clip: float = 1.0
    dtype: str = "bfloat16"  # of the forward and backward pass; weights stay fp32
    mesh: str = "auto"
    axis_types: str = "auto"
    seed: int = 0
    save_every: int = 1000
    log_every: int = 50
    minutes: float | None = None  # stop at the first log after so long, whole or not

    def __post_init__(self) -> None:
        if self.model.vocabulary != len(VOCABULARY):
            raise ValueError(
                f"model.vocabulary={self.model.vocabulary}, but the language has "
                f"{len(VOCABULARY)} words."
            )
        if not self.stages or self.log_every < 1 or self.save_every < 1:
            raise ValueError(
                "A run needs a stage, and log_every, save_every of 1 or more."
            )
        for stage in self.stages:
            longest = max(length for _, length in stage.shapes)
            reach = stage.recipe.max_position
            if not longest <= reach <= self.model.max_position:
                raise ValueError(
                    f"Documents of {longest} words at positions below {reach} do not "
                    f"fit model.max_position={self.model.max_position}."
                )

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True)
class TrainGates:
    """One training run of DuoAttention's gates (jaxkv/train/gates.py).

    The model is frozen: "demo", or the folder of a model of the same language. Every
    step draws `rows` documents of `length` words. The learning rate rises over the
    first fifth of the steps and falls over the last one to `final` of it.

    Raises:
      ValueError: there is no step, no row or no slot, or a document does not fit.
    """

    model: str = "demo"
    steps: int = 200
    rows: int = 1
    length: int = 1024
    sinks: int = 16  # of a head that is not to see everything
    recent: int = 112
    sparsity: float = 0.05  # weight of the mean gate in the loss
    learning_rate: float = 0.02
    final: float = 0.1
    recipe: Recipe = field(default_factory=lambda: Recipe(gaps=0.0))
    dtype: str = "float32"  # of the model, and what its gates are kept for
    seed: int = 0
    save_every: int = 50
    log_every: int = 5
    minutes: float | None = None  # stop at the first log after so long, whole or not

    def __post_init__(self) -> None:
        counts = ("steps", "rows", "recent", "save_every", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give one at least.")
        if self.sinks < 0 or not self.sparsity >= 0:
            raise ValueError(
                f"sinks={self.sinks} and sparsity={self.sparsity} cannot be below 0."
            )
        if not 32 <= self.length <= self.recipe.max_position:
            raise ValueError(
                f"length={self.length} is not from 32 to recipe.max_position="
                f"{self.recipe.max_position}."
            )


def known() -> list[str]:
    """The names under `configs/train`."""
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return []
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(name_or_file: str) -> Train | TrainGates:
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
    if not isinstance(config, Train | TrainGates):
        raise ValueError(
            f"{name_or_file} holds no constant TRAIN = Train(...) or TrainGates(...)."
        )
    return config


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
