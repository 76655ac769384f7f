"""Prefill and a decode step with a method's compressed cache, compiled for a slice.

Sequences lie over the mesh's data and fsdp axes, kv heads over tensor, in as many head
groups as that is long: budgets of heads then sum in each group, not over the layer. A
layer that caches one row for all heads has it on every device of tensor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import PoolShape, pack
from jaxkv.heads import Heads
from jaxkv.kept import Kept, empty_trail
from jaxkv.layerwise import groups_on
from jaxkv.mesh import ROWS, make_mesh, rows_over
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.params import take_apart
from jaxkv.phases import feed_donated
from jaxkv.plan.programs import Program, measure
from jaxkv.plan.topologies import Chip
from jaxkv.plan.training import fitting
from jaxkv.pools import pool_shapes
from jaxkv.prefill import compress_program, looks, see_layer
from jaxkv.rules import sharding
from pallas_kernels.dispatch import compile_for

NEW = 256  # tokens that pools have room for beside the prompt's


@dataclass(frozen=True)
class Serving:
    """`prefill` is of one layer, `at_once` prompts; `prefill_bytes` of all layers."""

    mesh: dict[str, int]
    groups: int
    batch: int
    layers: int
    at_once: int
    prefill: list[Program]
    prefill_bytes: dict[str, int]
    decode: Program

    def tokens_per_second(self, chip: Chip) -> float | None:
        """New tokens of all sequences, on the whole slice."""
        seconds = self.decode.seconds(chip)
        return None if seconds is None else self.batch / seconds

    def prefill_seconds(self, chip: Chip) -> float | None:
        """Of all prompts."""
        each = [program.seconds(chip) for program in self.prefill]
        known = [one for one in each if one is not None]
        times = self.layers * self.batch / self.at_once
        return sum(known) * times if len(known) == len(each) else None


def plan_serving(
    model: DecoderConfig,
    method: Method,
    context: int,
    batch: int,
    mesh: str,
    devices: Sequence[Any],
    chip: Chip | None,
    platform: str = "tpu",
    new: int = NEW,
) -> Serving:
    """The figures on those devices; mesh "auto" is tensor as far as heads allow.

    Heads are kv heads, and query heads where a layer caches one row for all of them.

    Raises:
      ValueError: the mesh fits neither devices nor model, the method needs what only a
        model with weights has, or a program does not fit in the chip's memory.
    """
    if method.calibrations or method.upkeep or method.score.feed is not None:
        raise ValueError(
            "A method that is calibrated, evicts at every step or feeds tokens cannot "
            "be planned for; give one such as snapkv, adakv or full."
        )
    if context + new > model.max_position:
        new = max(model.max_position - context, 1)
    if context > model.max_position:
        raise ValueError(
            f"A context of {context} passes the model's {model.max_position} tokens."
        )
    rows_of_layers = {model.rows(i) for i in range(model.layers)}
    if mesh == "auto":
        own, N = model.by_head, model.query_heads
        heads = {model.rows(i) if own(i) else N for i in range(model.layers)}
        tensor = gcd(*heads, len(devices))
        mesh = f"data={len(devices) // tensor},tensor={tensor}"
    over = make_mesh(mesh, "auto", devices)
    groups, rows = groups_on(over, model), rows_over(over)
    if batch % rows or any(K % groups for K in rows_of_layers):
        raise ValueError(
            f"mesh {mesh!r} splits {batch} sequences into {rows} and "
            f"{min(rows_of_layers)} kv heads into {groups}; both must divide."
        )
    with compile_for(platform), jax.set_mesh(over):
        decoder = abstract_decoder(model, over)
        shapes = pool_shapes(method, Heads.of(model), context, new, groups)
        seen = _prefill(decoder, method, shapes[0], context, rows, over, chip)
        cache = abstract_cache(model, method, shapes, context, batch, over)
        lies = NamedSharding(over, PartitionSpec(ROWS))
        ids = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=lies)
        lengths = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=lies)
        kinds = {"model": "parameters", "cache": "cache", "": "tokens"}
        arguments = (decoder, cache, ids, lengths)
        decode, _ = _program(
            "decode", feed_donated.trace, arguments, kinds, over, chip, "cache"
        )
    largest = max(seen, key=lambda program: program.total_bytes)
    held = {
        "parameters": bytes_on_chip(decoder),
        "cache": bytes_on_chip(cache),
        "one layer's work": largest.total_bytes - largest.bytes.get("parameters", 0),
    }
    if method.after_all_layers:
        numbers = sum(model.entry_numbers(i) for i in range(model.layers))
        held["full keys and values"] = 2 * context * numbers // groups
    return Serving(
        dict(over.shape), groups, batch, model.layers, rows, seen, held, decode
    )


def abstract_decoder(model: DecoderConfig, mesh: Mesh) -> Decoder:
    """A decoder in bfloat16 as it would lie on the mesh, without content."""
    empty = nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    params, rebuild = take_apart(empty)
    return rebuild(
        {
            path: without_content(x, sharding(mesh, path, x.shape))
            for path, x in params.items()
        }
    )


def abstract_cache(
    model: DecoderConfig,
    method: Method,
    shapes: Sequence[PoolShape],
    context: int,
    batch: int,
    mesh: Mesh,
) -> Cache:
    """What the method leaves of prompts, as it would lie on the mesh."""

    def pools():
        return tuple(
            _pool(model.only(i), shape, context, batch)
            for i, shape in enumerate(shapes)
        )

    def place(x):
        by_group = x.ndim > 1 and shapes[0].groups > 1
        axes = (ROWS, "tensor") if by_group else (ROWS,)
        return without_content(x, NamedSharding(mesh, PartitionSpec(*axes)))

    return Cache(jax.tree.map(place, jax.eval_shape(pools)))


def _pool(layer: DecoderConfig, shape: PoolShape, context: int, batch: int):
    heads, H = shape.groups * shape.rows, layer.entry(0)
    entry = jnp.zeros((batch, context, heads, H), jnp.bfloat16)
    most = min(shape.most, shape.total)
    kept = Kept(
        k=entry,
        v=entry if layer.values_apart(0) else None,
        position=jnp.zeros((batch, context), jnp.int32),
        order=jnp.zeros((batch, heads, most), jnp.int32),
        length=jnp.zeros((batch, heads), jnp.int32),
        row_state=empty_trail(layer, batch, heads, jnp.bfloat16),
    )
    return pack(kept, jnp.zeros((batch,), jnp.int32), shape)


def _prefill(
    decoder: Decoder,
    method: Method,
    shape: PoolShape,
    context: int,
    rows: int,
    mesh: Mesh,
    chip: Chip | None,
) -> list[Program]:
    """The two programs of a layer: the prompt through it, and what is kept of it."""
    lies = NamedSharding(mesh, PartitionSpec(ROWS))
    D, K = decoder.config.width, decoder.config.rows(0)

    def given(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=lies)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    x = given((rows, context, D), jnp.bfloat16)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    arguments = (
        decoder.layers[0],
        x,
        given((rows,), jnp.int32),
        without_content(keys, lies),
        number,
        number,
    )

    def trace_layer(*arguments):
        return see_layer.trace(*arguments, last=False, **looks((method,)))

    kinds = {"layer": "parameters", "x": "hidden states", "": "tokens"}
    layer, lowered = _program(
        "prefill, a layer", trace_layer, arguments, kinds, mesh, chip
    )
    traced, compiled = lowered
    _, seen = jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        traced.out_info,
        compiled.output_shardings,
    )
    if method.after_all_layers:
        return [layer]
    slots = given((rows, K), jnp.int32)

    def trace_cut(seen, slots):
        whole = replace(method, keep=1.0)
        return compress_program.trace(
            seen, whole, slots, shape, scores=None, limit=None
        )

    kinds = {"": "what the layer has seen"}
    cut, _ = _program("compress, a layer", trace_cut, (seen, slots), kinds, mesh, chip)
    return [layer, cut]


def _program(
    name: str,
    trace: Callable[..., Any],
    arguments: tuple[Any, ...],
    kinds: dict[str, str],
    mesh: Mesh,
    chip: Chip | None,
    kernels_read: str = "",
) -> tuple[Program, tuple[Any, Any]]:
    traced = trace(*arguments)
    lowered, began = traced.lower(), time.monotonic()
    compiled = fitting(lowered)
    seconds = time.monotonic() - began
    program = measure(name, traced, compiled, seconds, kinds, mesh, chip, kernels_read)
    return program, (traced, compiled)


def without_content(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """An array's shape, dtype and where it would lie."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def bytes_on_chip(tree: Any) -> int:
    """Bytes of one chip's part of all arrays, without the padding of layouts."""
    return sum(
        prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
