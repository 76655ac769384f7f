"""The base of an add-on: a folder that has only what was changed of another model.

Its config.json is the whole model's, its safetensors have the tensors that the base has
not or has otherwise, and its jaxkv.json says which model that is:

    "base": {"model": NAME, "rows": sha256 of a row of each of the base's tensors}

NAME is "demo", org/name, or a folder, relative to the add-on's. Nearly any training
moves every row of a matrix that it moves, so that an add-on of other weights is refused
without reading the base whole.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from jaxkv.models.find import folder_of, shipped
from jaxkv.models.hash import hash_tensor
from jaxkv.models.safetensors import TensorFolder, read_json

OURS = "jaxkv.json"  # what other readers of the folder need not know
BASE = "base"


class Base(NamedTuple):
    """A base's folder and its tensors."""

    folder: Path
    tensors: TensorFolder


def base_of(path: Path) -> Base | None:
    """The base of the add-on in a folder; None where the folder is whole.

    Raises:
      ValueError: the base is nowhere, is not the one that the add-on was made for, or
        is an add-on itself.
    """
    about = read_json(path / OURS) if (path / OURS).is_file() else {}
    if BASE not in about:
        return None
    found = about[BASE]
    texts = found if isinstance(found, dict) else {}
    name, rows = texts.get("model"), texts.get("rows")
    if not isinstance(name, str) or not isinstance(rows, str):
        raise ValueError(
            f"{path / OURS}: base={found!r} names no model and no sha256 of its "
            "rows; export the add-on again."
        )
    base = open_base(path / name if _beside(path, name) else name)
    if fingerprint(base.tensors) != rows:
        raise ValueError(
            f"{path} is an add-on of another {name} than {base.folder}: its weights "
            "are not those that it was made for; give the base that it was made for."
        )
    return base


def open_base(name: str | os.PathLike) -> Base:
    """The model called `name`, as a base; ValueError where it cannot be one."""
    folder = folder_of(name)
    about = read_json(folder / OURS) if (folder / OURS).is_file() else {}
    if BASE in about:
        raise ValueError(
            f"{folder} is itself an add-on, of {about[BASE]}; give its base as a base."
        )
    return Base(folder, TensorFolder(folder))


def fingerprint(tensors: TensorFolder) -> str:
    """sha256 of the middle row of each of a folder's tensors; of vectors, whole."""
    digest = hashlib.sha256()
    for name in sorted(tensors.names):
        shape = tensors.shape(name)
        row = ... if len(shape) < 2 else slice(shape[0] // 2, shape[0] // 2 + 1)
        hash_tensor(digest.update, name, tensors.read(name, row))
    return digest.hexdigest()


def _beside(path: Path, name: str) -> bool:
    return name not in shipped() and (path / name).is_dir()
