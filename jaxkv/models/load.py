"""jaxkv.load: a model and its tokenizer from a name."""

import os

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.mesh import make_mesh
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.find import folder_of, is_folder
from jaxkv.models.presets import preset, random_decoder


def load(
    name: str | os.PathLike,
    dtype: DTypeLike | None = None,
    mesh: Mesh | str | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """The model called `name` and its tokenizer.

    name is the first of these that fits:
      "demo"          the small model inside the package; "demo-mla" and
                      "demo-matryoshka" are what was trained of it
      a folder        config.json, safetensors and tokenizer.json
      a preset        such as "llama-3.1-8b": true shape, random weights, no tokenizer
                      (None); for measuring speed and memory
      "org/name"      fetched from Hugging Face, if huggingface_hub is installed

    Parameters have `dtype`: float32 when not given, bfloat16 for a preset.

    mesh: devices that the model is to lie on, and what is done with it runs on: "auto",
    or axes as in "data=2,tensor=4" (`jaxkv.mesh`). Rows go over data and fsdp, kv heads
    over tensor; fsdp splits each parameter too, and a layer is gathered where it is
    used. Only what a device holds is read. Where heads share a budget, they do so among
    those of one device: budgets then sum in each of `tensor` groups of kv heads, and
    not over the layer.

    Raises ValueError, one sentence, when nothing fits or what fits cannot be read, or
    for a mesh that does not fit the devices or the model.
    """
    on = make_mesh(mesh) if isinstance(mesh, str) else mesh
    _check_heads(name, on)
    config = None if is_folder(name) else preset(os.fspath(name))
    if config is not None:
        dtype = jnp.bfloat16 if dtype is None else dtype
        return random_decoder(config, 0, dtype, on), None
    return folder.load(folder_of(name), jnp.float32 if dtype is None else dtype, on)


def _check_heads(name: str | os.PathLike, mesh: Mesh | None) -> None:
    if mesh is None:
        return
    config, tensor = config_of(name), mesh.shape.get("tensor", 1)
    if config.kv_heads % tensor:
        raise ValueError(
            f"The mesh's tensor axis of {tensor} does not divide the model's "
            f"{config.kv_heads} kv heads; give a tensor axis that does."
        )


def config_of(name: str | os.PathLike) -> DecoderConfig:
    """The shape of the model called `name`, as `load` finds it, without its weights."""
    config = None if is_folder(name) else preset(os.fspath(name))
    return folder.read_folder_config(folder_of(name)) if config is None else config


def dtype_of(name: str | os.PathLike) -> np.dtype:
    """What the model called `name` is stored as; bfloat16 for a preset."""
    if not is_folder(name) and preset(os.fspath(name)) is not None:
        return jnp.dtype(jnp.bfloat16)
    return folder.stored_dtype(folder_of(name))


def tokenizer_of(name: str | os.PathLike) -> Tokenizer | None:
    """The tokenizer of the model called `name`; None where it has none."""
    if not is_folder(name) and preset(os.fspath(name)) is not None:
        return None
    return folder.tokenizer_of(folder_of(name))
