"""jaxkv.load: a model and its tokenizer from a name."""

import importlib
import os
import re
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tokenizers import Tokenizer

import jaxkv
from jaxkv.mesh import make_mesh
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import preset, preset_names, random_decoder

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["config.json", "generation_config.json", "tokenizer.json"]
HUB_FILES += ["*.safetensors", "*.safetensors.index.json"]


def load(
    name: str | os.PathLike,
    dtype: DTypeLike | None = None,
    mesh: Mesh | str | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """The model called `name` and its tokenizer.

    name is the first of these that fits:
      "demo"          the small model inside the package
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
    return folder.load(_folder_of(name), jnp.float32 if dtype is None else dtype, on)


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
    return folder.read_folder_config(_folder_of(name)) if config is None else config


def tokenizer_of(name: str | os.PathLike) -> Tokenizer | None:
    """The tokenizer of the model called `name`; None where it has none."""
    if not is_folder(name) and preset(os.fspath(name)) is not None:
        return None
    return folder.read_tokenizer(_folder_of(name) / "tokenizer.json")


def is_folder(name: str | os.PathLike) -> bool:
    """Whether `name` is "demo" or a folder that is there."""
    return os.fspath(name) == "demo" or os.path.isdir(name)


def _folder_of(name: str | os.PathLike) -> Path:
    """Where the files of a model lie that is no preset, fetched if need be."""
    text = os.fspath(name)
    if text == "demo":
        return demo_folder()
    if os.path.isdir(text):
        return Path(text)
    if HUB_NAME.fullmatch(text):
        return Path(_fetch(text))
    raise ValueError(_no_such(text))


def demo_folder() -> Path:
    """Where the demo model lies inside the package; ValueError when it is not there."""
    path = Path(jaxkv.__file__).parent / "demo"
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: the demo model is not in this installation; install jaxkv again "
            "or give a model folder."
        )
    return path


def _no_such(name: str) -> str:
    return (
        f"{name!r} is no model; give 'demo', a folder with config.json and "
        f"safetensors, one of {', '.join(preset_names())}, or a Hugging Face org/name "
        "(with huggingface_hub installed)."
    )


def _fetch(name: str) -> str:
    """The local folder of a Hugging Face model; only the files we read are fetched."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ValueError(_no_such(name)) from None
    try:
        return hub.snapshot_download(name, allow_patterns=HUB_FILES)
    except Exception as error:  # its errors share no base class across versions
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{_no_such(name)} Hugging Face said: {reason}") from error
