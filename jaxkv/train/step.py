"""One step of training as one jitted program, on whatever mesh it runs.

    state = {params, optimizer, guard};  state <- step(state, fixed, number, given)

Everything a step depends on is the state, what is fixed, its number, and the batches it
is given; documents are drawn inside it, from the seed and the number.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PyTree

from jaxkv.mesh import rows_over
from jaxkv.params import Params
from jaxkv.rules import shardings
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Batch
from jaxkv.train.forward import Forward, Student, forward
from jaxkv.train.objectives.base import Gave, Objective, targets
from jaxkv.train.parts import Fixed, Parts, abstract
from pallas_kernels.sharded import over_mesh

State = dict[str, Any]
Counts = dict[str, Float[Array, " 2"]]
"""Pairs (sum, of how much), to be added up over steps and divided."""

ADD_ON = 2**31 - 1  # what an add-on draws from, of a step's key; no row of data has it

Step = Callable[[State, Fixed, Array, tuple[Batch, ...]], tuple[State, Counts]]


def first_state(config: Train, trained: Params, mesh: Mesh) -> State:
    """The state before the first step, each array where it will lie."""
    make = partial(_beside, config)
    lies = shardings(mesh, jax.eval_shape(make, trained))
    return {"params": trained} | jax.jit(make, out_shardings=lies)(trained)


def abstract_state(config: Train, trained: Params, mesh: Mesh) -> State:
    """What `first_state` gives of parameters without content, without content."""
    beside = jax.eval_shape(partial(_beside, config), trained)
    return {"params": trained} | jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        beside,
        shardings(mesh, beside),
    )


def _beside(config: Train, trained: Params) -> State:
    """What a state has besides its parameters, before the first step."""
    optimizer = config.optimizer(config.total).init(trained)
    return {"optimizer": optimizer, "guard": config.guard.memory()}


def make_step(parts: Parts, mesh: Mesh, first: int, stage: Stage) -> Step:
    """The jitted step of a stage that begins at step `first`; it consumes the state."""
    config = parts.config
    multiple = rows_over(mesh) * config.micro

    def step(state, fixed, number, given):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        batches = stage.feed.batches(key, given, multiple)
        weight = sum(targets(batch)[1].sum() for batch in batches)
        weight = jnp.maximum(weight, 1e-9)
        drawn = jax.random.fold_in(key, ADD_ON)
        loss = partial(_loss, parts, fixed, number, weight, drawn)
        (value, told), slope = _accumulate(loss, state["params"], batches, config.micro)
        norm = optax.tree.norm(slope)
        guard, taken, guarded = config.guard(state["guard"], number, first, value, norm)
        before = {name: state[name] for name in ("params", "optimizer")}
        after = _update(config, slope, **before)
        after = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, before)
        means = {"loss": value} | told["means"]
        counts = {name: jnp.stack([x * weight, weight]) for name, x in means.items()}
        counts |= told["counts"] | guarded
        counts["gradient_norm"] = jnp.stack([norm, jnp.ones_like(norm)])
        return after | {"guard": guard}, counts

    params: Any = {path: parts.shapes[path] for path in sorted(parts.trained)}
    lies = shardings(mesh, abstract_state(config, params, mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=(lies, everywhere), donate_argnums=0)


def lower(parts: Parts, mesh: Mesh, stage: Stage) -> jax.stages.Lowered:
    """A stage's step for a mesh of whatever devices, without an array."""
    with jax.set_mesh(mesh):
        return trace(parts, mesh, stage).lower()


def trace(parts: Parts, mesh: Mesh, stage: Stage) -> jax.stages.Traced:
    """The same before it is lowered."""
    with jax.set_mesh(mesh):
        trained, fixed = abstract(parts, mesh)
        state = abstract_state(parts.config, trained, mesh)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        step: Any = make_step(parts, mesh, 0, stage)
        return step.trace(state, fixed, number, stage.feed.abstract(mesh))


def _loss(
    parts: Parts,
    fixed: Fixed,
    number: Array,
    weight: Float[Array, ""],
    key: Key[Array, ""],
    trained: Params,
    batches: tuple[Batch, ...],
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """(loss, what objectives tell) of batches, as their share of the whole step's."""
    config = parts.config
    student, teacher = parts.student(trained, fixed), parts.teacher(fixed)
    total = jnp.float32(0)
    told: dict[str, Any] = {"means": {}, "counts": {}}
    for batch in batches:
        target_BT, weight_BT = targets(batch)
        gave = Gave(
            batch,
            target_BT,
            weight_BT / weight,
            _forward(config, student, batch, config.remat, key),
            None if teacher is None else _forward(config, teacher, batch, "none"),
        )
        for name, objective in names(config).items():
            value = objective(gave)
            total += objective.weight_at(config.total)(number) * value.sum
            _add(told["counts"], value.counts)
            if len(config.objectives) > 1:
                _add(told["means"], {name: value.sum})
    return total, told


def names(config: Train) -> dict[str, Objective]:
    """Each objective by what the log calls it: "hidden_states", "hidden_states_2"."""
    found: dict[str, Objective] = {}
    for objective in config.objectives:
        name = re.sub("(?<!^)(?=[A-Z])", "_", type(objective).__name__).lower()
        same = sum(other.startswith(name) for other in found)
        found[f"{name}_{same + 1}" if same else name] = objective
    return found


def _forward(
    config: Train,
    student: Student,
    batch: Batch,
    remat: str,
    key: Key[Array, ""] | None = None,
) -> Forward:
    segment = batch.get("segment")
    dtype = jnp.dtype(config.dtype)
    looks = frozenset().union(*(o.looks for o in config.objectives))
    tokens, position = batch["tokens"], batch["position"]
    given = tokens, position, segment, dtype, remat, looks, key
    return forward(student, *given, unrolled=config.unrolled)


def _add(sums: dict[str, Array], more: Mapping[str, Array]) -> None:
    for name, x in more.items():
        sums[name] = sums[name] + x if name in sums else x


def _accumulate(
    loss: Callable[[Params, tuple[Batch, ...]], tuple[Array, PyTree[Array]]],
    trained: Params,
    batches: tuple[Batch, ...],
    micro: int,
) -> tuple[tuple[Array, PyTree[Array]], Params]:
    """((loss, what is told), gradient): of all rows at once, or of parts in turn."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if micro == 1:
        return gradient(trained, batches)

    def split(mine):
        return jax.tree.map(lambda x: x.reshape(micro, -1, *x.shape[1:]), mine["all"])

    slices = over_mesh(split, {"all": batches}, {"all": "B"}, "-B")
    one = jax.tree.map(lambda x: x[0], slices)
    found, _ = jax.eval_shape(gradient, trained, one)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    def add(sums, some):
        return jax.tree.map(jnp.add, sums, gradient(trained, some)), None

    start = sums, jax.tree.map(jnp.zeros_like, trained)
    return jax.lax.scan(add, start, slices)[0]


def _update(config: Train, slope: Params, params: Any, optimizer: Any) -> State:
    """The parameters and the optimizer's state after a step."""
    update = config.optimizer(config.total).update
    # Optax raises Adam's decay to an integer power, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        change, kept = update(slope, optimizer, params)
    params = optax.apply_updates(params, change)
    if config.optimizer.within is not None:
        params = jax.tree.map(lambda x: jnp.clip(x, *config.optimizer.within), params)
    return {"params": params, "optimizer": kept}
