"""Decode steps of llama-3.1-8b on a mesh, with shapes and shardings but no arrays.

Batch over the axis `data`, kv heads over the axis `tensor`, as many head groups as that
is long. The cache is what `snapkv` leaves of 32768 tokens at keep 0.1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import pack
from jaxkv.heads import Heads
from jaxkv.kept import Kept
from jaxkv.method import method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import preset
from jaxkv.phases import Turn, decode, start_turn
from jaxkv.pools import pool_shapes
from jaxkv.sample import Sample
from tests.tensor_parallel import RULES, split_decoder

BATCH, CONTEXT, KEEP, NEW = 8, 32768, 0.1, 256
DTYPE = jnp.bfloat16
ENDS = {"table": PartitionSpec(None, "tensor"), "head": PartitionSpec("tensor")}


@dataclass(frozen=True)
class Step:
    """`function` of (model, turn), the turn donated; both without content."""

    function: Callable[..., Any]
    model: Decoder
    turn: Turn

    @property
    def pool(self) -> set[int]:
        """Numbers of elements, on one chip, of the arrays that hold entries."""
        pools = self.turn.cache.pools
        return {
            size_on_chip(x) for pages in pools for x in jax.tree.leaves(pages.entry)
        }

    @property
    def model_bytes(self) -> int:
        """Of the parameters, on one chip."""
        return bytes_on_chip(self.model)

    @property
    def cache_bytes(self) -> int:
        """Of the cache, on one chip."""
        return bytes_on_chip(self.turn.cache)


def llama_step(mesh: Mesh, layers: int | None = None) -> Step:
    """The loop of decode steps on the mesh, of the whole model or of a few layers."""
    config = preset("llama-3.1-8b")
    assert config is not None
    config = replace(config, layers=layers or config.layers)
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=DTYPE))
    groups = mesh.shape["tensor"]
    turn = jax.eval_shape(lambda: start(config, groups))

    def place(x):
        by_pool = x.shape[:2] == (BATCH, groups)
        axes = ("data", "tensor") if by_pool else ("data",) if x.ndim else ()
        return without_content(x, NamedSharding(mesh, PartitionSpec(*axes)))

    def steps(model, turn):
        return decode(model, turn, 8, Sample(), config.stop_tokens)

    return Step(
        jax.jit(steps, donate_argnames="turn"),
        split_decoder(model, mesh, without_content, RULES | ENDS),
        jax.tree.map(place, turn),
    )


def start(config: DecoderConfig, groups: int) -> Turn:
    """A turn whose cache has the pools that the method's own plan gives."""
    row, K, H = method("snapkv", keep=KEEP), config.kv_heads, config.head_dim
    heads = Heads(config.layers, K)
    shapes = pool_shapes(row, heads, CONTEXT, headroom=NEW, groups=groups)
    entry = jnp.zeros((BATCH, CONTEXT, K, H), DTYPE)
    nothing = jnp.zeros((BATCH, K), jnp.int32)
    kept = Kept(
        k=entry,
        v=entry,
        position=jnp.zeros((BATCH, CONTEXT), jnp.int32),
        order=jnp.zeros((BATCH, K, row.slots(CONTEXT)), jnp.int32),
        length=nothing,
    )
    pools = tuple(pack(kept, nothing[:, 0], shape) for shape in shapes)
    return start_turn(Cache(pools), jnp.zeros((BATCH, config.vocabulary), DTYPE), 0)


def without_content(x, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """An array's shape, dtype and where it would lie."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def size_on_chip(x: jax.ShapeDtypeStruct) -> int:
    """Elements of one chip's part."""
    return int(np.prod(x.sharding.shard_shape(x.shape)))


def bytes_on_chip(tree: Any) -> int:
    """Bytes of one chip's part of all arrays."""
    return sum(size_on_chip(x) * x.dtype.itemsize for x in jax.tree.leaves(tree))
