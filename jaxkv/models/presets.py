"""Named shapes of published models, and decoders of such a shape with random weights.

A preset is a file of configs/models/; its name is the file's, with `.`, `-` or `_`.
Speed and memory do not depend on the weights' values: a random decoder measures both.
"""

import importlib
import pkgutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import jaxkv.configs.models
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.folder import assemble


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
    config: DecoderConfig, seed: int, dtype: DTypeLike = jnp.bfloat16
) -> Decoder:
    """A decoder with fresh weights, a function of (config, seed, dtype) alone.

    Made on the device layer by layer, so that the peak is near the weights' own size
    and one compiled program serves all layers.
    """
    first, *others = jax.random.split(jax.random.key(seed), config.layers + 1)
    dtype = jnp.dtype(dtype)
    layers = {i: _layer(key, config.only(i), dtype) for i, key in enumerate(others)}
    return assemble(config, _ends(first, config, dtype) | {"layers": layers}, dtype)


@partial(jax.jit, static_argnames=("config", "dtype"))
def _ends(key, config, dtype):
    """The parameters outside the layers: those of a decoder without any."""
    model = Decoder(
        replace(config, layers=0, attention=()), rngs=nnx.Rngs(params=key), dtype=dtype
    )
    return nnx.to_pure_dict(nnx.state(model))


@partial(jax.jit, static_argnames=("config", "dtype"))
def _layer(key, config, dtype):
    """The layer of a config that has no other; one program makes layers alike."""
    layer = Layer(config, 0, rngs=nnx.Rngs(params=key), dtype=dtype)
    return nnx.to_pure_dict(nnx.state(layer))
