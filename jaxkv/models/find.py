"""Where the files of a model lie, by the name that it is asked for by."""

import importlib
import os
import re
from pathlib import Path

import jaxkv

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["config.json", "generation_config.json", "jaxkv.json", "tokenizer.json"]
HUB_FILES += ["*.safetensors", "*.safetensors.index.json"]
DEMO = "demo"


def is_folder(name: str | os.PathLike) -> bool:
    """Whether `name` is one of `shipped` or a folder that is there."""
    return os.fspath(name) in shipped() or os.path.isdir(name)


def folder_of(name: str | os.PathLike) -> Path:
    """Where the files of a model lie that is no preset, fetched if need be.

    Raises ValueError, one sentence, where there is no such model.
    """
    text = os.fspath(name)
    if text == DEMO:
        return demo_folder()
    if text in shipped():
        return shipped()[text]
    if os.path.isdir(text):
        return Path(text)
    if HUB_NAME.fullmatch(text):
        return Path(_fetch(text))
    raise ValueError(_no_such(text))


def demo_folder() -> Path:
    """Where the demo model lies inside the package; ValueError when it is not there."""
    path = _inside()
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: the demo model is not in this installation; install jaxkv again "
            "or give a model folder."
        )
    return path


def shipped() -> dict[str, Path]:
    """Models inside the package by name: demo, and demo-NAME of what was made of it."""
    made = sorted(path.parent for path in _inside().glob("*/config.json"))
    return {DEMO: _inside()} | {f"{DEMO}-{path.name}": path for path in made}


def _inside() -> Path:
    return Path(jaxkv.__file__).parent / DEMO


def _no_such(name: str) -> str:
    # Here: it also makes decoders, by folder.py, which looks for bases by this file.
    from jaxkv.models.presets import preset_names

    return (
        f"{name!r} is no model; give {', '.join(map(repr, shipped()))}, a "
        f"folder with config.json and safetensors, one of {', '.join(preset_names())}, "
        "or a Hugging Face org/name (with huggingface_hub installed)."
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
