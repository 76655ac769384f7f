"""A forward pass as training runs it: layers cast, gathered, recomputed, looked into.

Layers run in a loop over their stacked parameters, one for neighbours that are alike
(all of them, but where some attend to latents and some not). So a program has one layer
whatever their number, and a device gathers one layer at a time: unrolled, XLA is free
to gather all of them at once, and on some platforms does. On one device the loop may be
unrolled.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jaxkv.mesh import ROWS, lay
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.layers import lookup
from jaxkv.params import path_of
from jaxkv.rules import GATHERED, axes_of, for_use
from jaxkv.train.add_ons.base import Added, Attended
from pallas_kernels.sharded import over_mesh

ATTENTION = ("dot_product_attention_fwd_wrapper", "pallas_call")  # cuDNN's, splash's


def _attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """What a fused kernel gave: as small as a product, and dearest to compute again."""
    return primitive.name in ATTENTION


_policies = jax.checkpoint_policies
_both = _policies.save_from_both_policies
REMAT: Mapping[str, Callable[..., Any]] = {
    "none": _policies.save_anything_except_these_names(GATHERED),
    "dots": _both(_policies.dots_saveable, _attention),
    "dots_without_batch": _both(_policies.dots_with_no_batch_dims_saveable, _attention),
    "full": _policies.nothing_saveable,
}
"""What a layer keeps for the backward pass: all but gathered weights; the products, or
those with weights only, and what a kernel gave for attention; nothing but its input."""


class Student(NamedTuple):
    """A decoder and what is added to it; a teacher is one without."""

    model: Decoder
    add_on: Added | None = None


class Forward(NamedTuple):
    """What a model gave on a batch; of its layers only what was asked for."""

    hidden: Float[Array, "B T D"]  # normed, of the last layer
    table: Float[Array, "V D"]  # logits are hidden times this
    layers: Float[Array, "L B T D"] | None = None  # what leaves each layer
    attended: Attended | None = None  # stacked, what each layer's attention gave
    kept: Float[Array, "..."] | None = None  # the share that an add-on keeps


def forward(
    student: Student,
    token_ids: Int[Array, "B T"],
    position: Int[Array, "B T"],
    segment: Int[Array, "B T"] | None,
    dtype: DTypeLike,
    remat: str = "none",
    looks: frozenset[str] = frozenset(),
    key: Key[Array, ""] | None = None,
    unrolled: bool = False,
) -> Forward:
    """The pass, computed in `dtype`; `remat` is a name of `REMAT`.

    looks: which of "layers" and "attended" to give. key: what an add-on draws from;
    without one it draws nothing. unrolled: as in the run's config.
    """
    model, add_on = student

    def run(x_BTD: Array, one: Any) -> tuple[Array, dict[str, Any]]:
        i, layer = one
        layer = for_use(layer, "layers.*", dtype)
        normed_BTD = layer.attention_norm(x_BTD)
        if add_on is None:
            found = Attended(layer.attention(normed_BTD, position, segment))
        else:
            own = for_use(add_on, "add_on", dtype)
            given = normed_BTD, position, segment, key
            found = own.attend(i, layer.attention, *given)
        x_BTD = x_BTD + found.output
        x_BTD = x_BTD + layer.mlp(layer.mlp_norm(x_BTD))
        shown = {"layers": x_BTD, "attended": found}
        return x_BTD, {name: shown[name] for name in looks}

    several = jax.sharding.get_abstract_mesh().size > 1
    if remat != "none" or several:
        # prevent_cse: a loop needs no guard against sharing with what is outside it.
        run = jax.checkpoint(run, policy=REMAT[remat], prevent_cse=False)
    x_BTD = _embed(model, token_ids, dtype)
    first, found = 0, []
    for _, alike in groupby(model.layers, key=jax.tree.structure):
        layers = list(alike)
        numbered = first + jnp.arange(len(layers)), _stacked(layers, dtype)
        once = unrolled and not several
        x_BTD, given = jax.lax.scan(run, x_BTD, numbered, unroll=once)
        first += len(layers)
        found.append(given)
    given = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    return Forward(
        hidden=for_use(model.norm, "norm", dtype)(x_BTD),
        table=_output_table(model, dtype),
        kept=None if add_on is None else add_on.kept(),
        layers=given.get("layers"),
        attended=given.get("attended"),
    )


def _stacked(layers: Iterable[Layer], dtype: DTypeLike) -> Layer:
    """All layers' parameters in `dtype` as those of one, an axis of layers before."""

    def stack(keys: Any, *arrays: Array) -> Array:
        axes = axes_of(f"layers.*.{path_of(keys)}")
        cast = [array.astype(dtype) for array in arrays]
        return lay(jnp.stack(cast), PartitionSpec(None, *axes))

    return jax.tree_util.tree_map_with_path(stack, *layers)


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
