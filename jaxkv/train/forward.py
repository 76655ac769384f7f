"""A forward pass as training runs it: layers cast, gathered, recomputed, looked into.

What nobody asks for is not kept: XLA drops the hidden states that no objective reads.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.mesh import ROWS, lay
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.layers import lookup
from jaxkv.rules import GATHERED, for_use
from jaxkv.train.add_ons.base import Added, Attended
from pallas_kernels.sharded import over_mesh

_policies = jax.checkpoint_policies
REMAT: Mapping[str, Callable[..., Any]] = {
    "none": _policies.save_anything_except_these_names(GATHERED),
    "dots": _policies.dots_saveable,
    "dots_without_batch": _policies.dots_with_no_batch_dims_saveable,
    "full": _policies.nothing_saveable,
}
"""What a layer keeps for the backward pass: all but gathered weights, the products, the
products with weights only, nothing but its input."""


class Student(NamedTuple):
    """A decoder and what is added to it; a teacher is one without."""

    model: Decoder
    add_on: Added | None = None


class Forward(NamedTuple):
    """What a model gave on a batch; tuples have a place for each layer."""

    hidden: Float[Array, "B T D"]  # normed, of the last layer
    layers: tuple[Float[Array, "B T D"], ...]  # what leaves each layer
    attended: tuple[Attended, ...]
    table: Float[Array, "V D"]  # logits are hidden times this
    kept: Float[Array, "..."] | None  # the share that an add-on keeps, wherever


def forward(
    student: Student,
    token_ids: Int[Array, "B T"],
    position: Int[Array, "B T"],
    segment: Int[Array, "B T"] | None,
    dtype: DTypeLike,
    remat: str = "none",
) -> Forward:
    """The pass, computed in `dtype`; `remat` is a name of `REMAT`."""
    model, add_on = student
    x_BTD = _embed(model, token_ids, dtype)
    layers, attended = [], []
    for i in range(len(model.layers)):
        run = _layer(i, dtype, remat)
        x_BTD, found = run(model.layers[i], add_on, x_BTD, position, segment)
        layers.append(x_BTD)
        attended.append(found)
    kept = None if add_on is None else add_on.kept()
    return Forward(
        hidden=for_use(model.norm, "norm", dtype)(x_BTD),
        layers=tuple(layers),
        attended=tuple(attended),
        table=_output_table(model, dtype),
        kept=kept,
    )


def _layer(i: int, dtype: DTypeLike, remat: str) -> Callable[..., Any]:
    """The i-th layer as a function that keeps what `remat` says."""

    def run(layer: Layer, add_on: Added | None, x_BTD, position, segment):
        layer = for_use(layer, f"layers.{i}", dtype)
        normed_BTD = layer.attention_norm(x_BTD)
        if add_on is None:
            output = layer.attention(normed_BTD, position, segment)
            found = Attended(output)
        else:
            add_on = for_use(add_on, "add_on", dtype)
            found = add_on.attend(i, layer.attention, normed_BTD, position, segment)
        x_BTD = x_BTD + found.output
        return x_BTD + layer.mlp(layer.mlp_norm(x_BTD)), found

    alone = jax.sharding.get_abstract_mesh().size <= 1
    return run if remat == "none" and alone else jax.checkpoint(run, policy=REMAT[remat])


def _embed(
    model: Decoder, token_ids: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    table = for_use(model.table, "table", dtype)[...]
    x_BTD = over_mesh(
        lambda mine: lookup(mine["table"], mine["ids"]),
        {"table": table, "ids": token_ids},
        {"table": "-J", "ids": "B"},
        "B-J",
    )
    return lay(x_BTD, PartitionSpec(ROWS))


def _output_table(model: Decoder, dtype: DTypeLike) -> Float[Array, "V D"]:
    tied = model.config.tie_embeddings
    path, table = ("table", model.table) if tied else ("head", model.head)
    return lay(for_use(table, path, dtype)[...], PartitionSpec("tensor"))
