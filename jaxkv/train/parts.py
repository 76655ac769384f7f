"""What a run is made of: the trained parameters, the fixed ones, and the models."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.load import config_of, tokenizer_of
from jaxkv.models.load import load as load_model
from jaxkv.params import Params, take_apart
from jaxkv.rules import shardings
from jaxkv.train.config import Train
from jaxkv.train.forward import Student

ADDED = "add_on."  # what the paths of an add-on's parameters begin with
Fixed = dict[str, Params]  # "frozen" and "teacher"; a step reads them


@dataclass(frozen=True)
class Parts:
    """How a run's models come of parameters by path.

    `shapes` has the student's, fp32; `trained` says which of them are trained.
    """

    config: Train
    model: DecoderConfig
    teacher_model: DecoderConfig | None
    shapes: dict[str, jax.ShapeDtypeStruct]
    trained: frozenset[str]
    _student: Callable[[Params], Student]
    _teacher: Callable[[Params], Student]

    def student(self, trained: Params, fixed: Fixed) -> Student:
        """The model and add-on of a step."""
        return self._student(trained | fixed["frozen"])

    def teacher(self, fixed: Fixed) -> Student | None:
        """Its teacher; what it shares with the student's frozen part lies there."""
        if self.teacher_model is None:
            return None
        return self._teacher(fixed["frozen"] | fixed["teacher"])


def describe(config: Train) -> Parts:
    """The parts of a run, without an array.

    Raises:
      ValueError: there is no such model, or nothing fits a pattern of `trainable`.
    """
    model = _shape(config.model)
    shapes, student = _modules(config, model)
    trained = frozenset(
        path for path in shapes if any(fnmatchcase(path, p) for p in config.trainable)
    )
    for pattern in config.trainable:
        if not any(fnmatchcase(path, pattern) for path in shapes):
            raise ValueError(
                f"trainable has {pattern!r}, which fits no parameter of the run; give "
                f"patterns of paths such as {min(shapes)}."
            )
    needs = [o for o in config.objectives if o.needs_teacher]
    if needs and config.teacher is None:
        raise ValueError(
            f"{type(needs[0]).__name__} compares with a teacher, and the run has none; "
            'give teacher="itself" or a model.'
        )
    whose = config.model if config.teacher == "itself" else config.teacher
    teacher_model = None if whose is None else _shape(whose)
    if teacher_model is not None:
        _check_vocabulary(config, model, teacher_model)
    _, rebuild = take_apart(_empty(teacher_model or model))
    return Parts(
        config,
        model,
        teacher_model,
        shapes,
        trained,
        student,
        lambda params: Student(rebuild(params)),
    )


def _check_vocabulary(
    config: Train, model: DecoderConfig, teacher: DecoderConfig
) -> None:
    """Logits of one token id are compared, so that it must be one word to both.

    Special tokens may be called otherwise: those that a model reserves often are.
    """
    if teacher.vocabulary != model.vocabulary:
        raise ValueError(
            f"The teacher knows {teacher.vocabulary} tokens and the student "
            f"{model.vocabulary}; they need the same tokenizer."
        )
    named = [name for name in (config.model, config.teacher) if isinstance(name, str)]
    both = [tokenizer_of(name) for name in named if name != "itself"]
    words = [t.get_vocab(with_added_tokens=False) for t in both if t is not None]
    if len(words) == 2 and words[0] != words[1]:
        differ = dict(words[0].items() ^ words[1].items())
        raise ValueError(
            f"The teacher's tokenizer is not the student's: {len(differ)} words have "
            f"another id or none, {min(differ)!r} for one; give a teacher of the same "
            "tokenizer."
        )


def begin(parts: Parts, mesh: Mesh) -> tuple[Params, Fixed]:
    """(trained parameters in fp32, fixed ones in the run's dtype), on the mesh.

    Raises:
      ValueError: an axis of the mesh does not divide a parameter, or no rule names it.
    """
    config, dtype = parts.config, jnp.dtype(parts.config.dtype)
    student = _initial(parts, mesh)
    fixed: Fixed = {
        "frozen": {
            path: x.astype(dtype)
            for path, x in student.items()
            if path not in parts.trained
        },
        "teacher": {},
    }
    trained = {path: student[path] for path in student if path in parts.trained}
    trained = {path: x.astype(jnp.float32) for path, x in trained.items()}
    if config.teacher == "itself":
        copied = [path for path in trained if not path.startswith(ADDED)]
        # A copy: the student's own are given away to each step.
        fixed["teacher"] = {
            path: jnp.copy(trained[path]).astype(dtype) for path in copied
        }
    elif config.teacher is not None:
        fixed["teacher"] = placed(config.teacher, dtype, mesh)
    return trained, fixed


def abstract(parts: Parts, mesh: Mesh) -> tuple[Params, Fixed]:
    """What `begin` gives, without content: shapes, dtypes and where they would lie."""
    dtype = jnp.dtype(parts.config.dtype)

    def laid(params: Any, as_dtype: DTypeLike) -> Any:
        lies = shardings(mesh, params)
        return {
            path: jax.ShapeDtypeStruct(x.shape, as_dtype, sharding=lies[path])
            for path, x in params.items()
        }

    shapes, trained = parts.shapes, parts.trained
    frozen = {path: x for path, x in shapes.items() if path not in trained}
    teacher: Any = {}
    if parts.config.teacher == "itself":
        teacher = {p: shapes[p] for p in trained if not p.startswith(ADDED)}
    elif parts.teacher_model is not None:
        teacher = take_apart(_empty(parts.teacher_model))[0]
    fixed = {"frozen": laid(frozen, dtype), "teacher": laid(teacher, dtype)}
    mine = {path: x for path, x in shapes.items() if path in trained}
    return laid(mine, jnp.float32), fixed


def placed(name: str, dtype: DTypeLike, mesh: Mesh) -> Params:
    """The parameters of the model called `name`, each where its rule says."""
    params, _ = take_apart(load_model(name, dtype, mesh)[0])
    return params


def _initial(parts: Parts, mesh: Mesh) -> Params:
    """The student's parameters before training, fp32 where any of a model's is."""
    config = parts.config
    if isinstance(config.model, DecoderConfig):
        make = partial(_fresh, config)
        return jax.jit(make, out_shardings=shardings(mesh, parts.shapes))()
    whole = all(path.startswith(ADDED) for path in parts.trained)
    dtype = jnp.dtype(config.dtype) if whole else jnp.float32
    found = placed(config.model, dtype, mesh)
    if config.add_on is None:
        return found
    added = {path: x for path, x in parts.shapes.items() if path.startswith(ADDED)}
    make = jax.jit(
        partial(_added, config, parts.model), out_shardings=shardings(mesh, added)
    )
    return found | make()


def _fresh(config: Train) -> Params:
    assert isinstance(config.model, DecoderConfig)
    rngs = nnx.Rngs(config.seed)
    params, _ = take_apart(Decoder(config.model, rngs=rngs, dtype=jnp.float32))
    return params | (_added(config, config.model) if config.add_on is not None else {})


def _added(config: Train, model: DecoderConfig) -> Params:
    assert config.add_on is not None
    params, _ = take_apart(config.add_on(model, nnx.Rngs(config.seed)))
    return {ADDED + path: x for path, x in params.items()}


def _modules(config: Train, model: DecoderConfig) -> Any:
    """(shapes of the student's parameters by path, what makes a Student of such)."""
    shapes, rebuild = take_apart(_empty(model))
    if config.add_on is None:
        return shapes, lambda params: Student(rebuild(params))
    add_on = config.add_on
    added, rebuild_added = take_apart(
        nnx.eval_shape(lambda: add_on(model, nnx.Rngs(0)))
    )

    def student(params: Params) -> Student:
        own = {path: params[ADDED + path] for path in added}
        return Student(rebuild(params), rebuild_added(own))

    return shapes | {ADDED + path: x for path, x in added.items()}, student


def _empty(model: DecoderConfig) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0), dtype=jnp.float32))


def _shape(model: DecoderConfig | str) -> DecoderConfig:
    return model if isinstance(model, DecoderConfig) else config_of(model)
