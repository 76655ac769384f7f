"""Writes safetensors: a file, or a model's folder, in shards where it is large.

safetensors.py reads them. A file is written beside its name and renamed.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxkv.models.safetensors import INDEX, SINGLE

TORCH: Mapping[str, str] = {"format": "pt"}  # transformers wants to know
SHARD = 2 * 10**9  # bytes of a file, of which the host holds about twice to write it


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] = TORCH,
) -> None:
    """Writes a safetensors file: beside the final name first, so never half a file."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        save_file(whole, beside, metadata=dict(metadata))
        beside.chmod(_mode())  # the library's own is the owner's alone
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_folder(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], most: int = SHARD
) -> None:
    """Writes model.safetensors, or shards of up to `most` bytes and their index.

    Tensors are taken one after another, and those of one file exist at a time; the
    folder is one that nobody reads yet.
    """
    shards: list[dict[str, int]] = []  # the bytes of each tensor of a file
    waiting: dict[str, np.ndarray] = {}

    def flush() -> None:
        write(folder / f"{len(shards)}.part", waiting)
        shards.append({name: tensor.nbytes for name, tensor in waiting.items()})
        waiting.clear()

    for name, tensor in tensors:
        if waiting and sum(x.nbytes for x in waiting.values()) + tensor.nbytes > most:
            flush()
        waiting[name] = tensor
    flush()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / SINGLE)
        return
    total = len(shards)
    names = [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    for i, name in enumerate(names):
        (folder / f"{i}.part").rename(folder / name)
    pairs = zip(names, shards, strict=True)
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {tensor: name for name, shard in pairs for tensor in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _mode() -> int:
    """That of any new file here."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
