"""Named shapes of published models, and decoders of such a shape with random weights.

A preset is a file of configs/models/; its name is the file's, with `.`, `-` or `_`.
Speed and memory do not depend on the weights' values: a random decoder measures both.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

import jaxkv.configs.models
from jaxkv.mesh import with_auto_axes
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.folder import assemble
from jaxkv.params import path_of
from jaxkv.rules import sharding


def preset_names() -> tuple[str, ...]:
    """The presets there are, as `llama-3-1-8b`."""
    found = pkgutil.iter_modules(jaxkv.configs.models.__path__)
    return tuple(sorted(module.name.replace("_", "-") for module in found))


def preset(name: str) -> DecoderConfig | None:
    """The shape called `name` (`llama-3.1-8b`), or None if there is none."""
    dashed = name.lower().replace("_", "-").replace(".", "-")
    if dashed not in preset_names():
        return None
    path = f"jaxkv.configs.models.{dashed.replace('-', '_')}"
    return importlib.import_module(path).MODEL


def random_decoder(
    config: DecoderConfig,
    seed: int,
    dtype: DTypeLike = jnp.bfloat16,
    mesh: Mesh | None = None,
) -> Decoder:
    """A decoder with fresh weights, a function of (config, seed, dtype) alone.

    Made where they lie layer by layer, so that the peak is near the weights' own size
    and one compiled program serves all layers. Raises ValueError, one sentence, for a
    mesh that does not divide a parameter.
    """
    first, *others = jax.random.split(jax.random.key(seed), config.layers + 1)
    kind = jnp.dtype(dtype), mesh
    # What is outside the layers is a decoder without any.
    ends = _maker(Decoder, replace(config, layers=0, attention=()), "", *kind)(first)
    layers = {
        i: _maker(Layer, config.only(i), "layers.*.", *kind)(key)
        for i, key in enumerate(others)
    }
    return assemble(config, ends | {"layers": layers}, dtype)


@cache
def _maker(
    kind: Callable[..., nnx.Module],
    config: DecoderConfig,
    within: str,
    dtype: np.dtype,
    mesh: Mesh | None,
) -> Any:
    """A function of a key: a module's parameters, nested by attribute.

    within: what the paths of the parameters begin with, for the rules.
    """

    def make(key):
        module = kind(config, rngs=nnx.Rngs(params=key), dtype=dtype)
        return nnx.to_pure_dict(nnx.state(module))

    if mesh is None:
        return jax.jit(make)

    def own(keys: Any, x: Any) -> NamedSharding:
        return sharding(mesh, within + path_of(keys), x.shape)

    shapes = jax.eval_shape(make, jax.random.key(0))
    lies = jax.tree_util.tree_map_with_path(own, shapes)
    # Explicit axes would ask how each step on the way lies.
    plain = with_auto_axes(mesh)
    places = jax.tree.map(lambda own: NamedSharding(plain, own.spec), lies)
    program = jax.jit(make, out_shardings=places)

    def run(key):
        with jax.set_mesh(plain):
            return jax.device_put(program(key), lies)

    return run
