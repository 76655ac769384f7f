"""Writes a cache to one safetensors file: the slots in use, without pages or headroom.

    next_position                [B]
    layers.0.length, .overflow   [B, J, span, rows]
    layers.0.k, .v               [slots, H], head after head, each in its own order;
                                 no v where a value is part of its key (latents)
    layers.0.position            [slots]
    layers.0.slot_state.NAME     [slots, ...]
    layers.0.row_state.NAME      [B, J, span, rows, ...]

What is to be known about them is JSON in the file's own header, and not in a file
beside: one file is there whole or not at all, and nothing of it can be lost or mixed up
with another's. A sha256 of everything else stands there too. load.py reads it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError

import jaxkv
from jaxkv.cache.pages import Pages
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.hash import hash_tensor, model_hash
from jaxkv.models.write_safetensors import write

FORMAT = "jaxkv cache 1"
CHECKSUM = "sha256"


def save_pages(
    layers: Sequence[Pages],
    file: str | os.PathLike,
    model: Decoder,
    method: Method | None = None,
) -> None:
    """Writes the pages of every layer; see `Cache.save`."""
    path = Path(file)
    _check_fits(layers, model.config)
    tensors = {"next_position": np.asarray(layers[0].next_position)}
    for i, pages in enumerate(layers):
        flat = _without_pages(pages)
        tensors |= {f"layers.{i}.{name}": tensor for name, tensor in flat.items()}
    about = {
        "jaxkv": jaxkv.__version__,
        "model": model_hash(model),
        "method": None if method is None else repr(method),
        "page": [pages.page for pages in layers],
    } | sizes(model.config)
    metadata = {"format": FORMAT, "about": json.dumps(about)}
    metadata[CHECKSUM] = checksum(metadata, tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: the cache cannot be written there ({error}); "
            "give a file in a folder that you may write to."
        ) from None


def sizes(config: DecoderConfig) -> dict[str, int | list[int]]:
    """What a cache and its model must have in common.

    The rows that a layer caches and the size of a key, of each where layers differ.
    """
    layers = range(config.layers)
    return {
        "layers": config.layers,
        "kv_heads": _said_once([config.rows(i) for i in layers]),
        "head_dim": _said_once([config.entry(i) for i in layers]),
    }


def sizes_of_pools(
    pools: Iterable[tuple[Int[Any, "B J span R"], int]],
) -> dict[str, int | list[int]]:
    """The same of pools, of each its lengths and the size of its keys."""
    rows, entries = [], []
    for length, size in pools:
        _, J, span, R = length.shape
        rows += [J * R] * span
        entries += [size] * span
    found = {"kv_heads": _said_once(rows), "head_dim": _said_once(entries)}
    return {"layers": len(rows)} | found


def _said_once(sizes: list[int]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else sizes


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of all that a file says: its metadata, but this one, and its tensors."""
    digest = hashlib.sha256()
    said = {key: text for key, text in metadata.items() if key != CHECKSUM}
    digest.update(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        hash_tensor(digest.update, name, tensors[name])
    return digest.hexdigest()


def _check_fits(layers: Sequence[Pages], config: DecoderConfig) -> None:
    found = sizes_of_pools((p.length, p.entry.k.shape[-1]) for p in layers)
    if found != sizes(config):
        raise ValueError(
            f"The cache has {found['layers']} layers of {found['kv_heads']} kv heads "
            f"of size {found['head_dim']}, other than the model; save it with the "
            "model that made it."
        )


def _without_pages(pages: Pages) -> dict[str, np.ndarray]:
    """One layer's tensors as a file holds them."""
    pool, page, slot = _slots_in_use(pages)

    def flat(array) -> np.ndarray:
        """[B, J, pages, P, ...] to [slots, ...]."""
        array = np.asarray(array)
        return array.reshape(-1, *array.shape[2:])[pool, page, slot]

    by_slot = {
        "k": pages.entry.k,
        **({} if pages.entry.v is None else {"v": pages.entry.v}),
        "position": pages.position,
        **{f"slot_state.{name}": state for name, state in pages.slot_state.items()},
    }
    by_row = {
        "length": pages.length,
        "overflow": pages.overflow,
        **{f"row_state.{name}": state for name, state in pages.row_state.items()},
    }
    found = {name: flat(array) for name, array in by_slot.items()}
    return found | {name: np.asarray(array) for name, array in by_row.items()}


def _slots_in_use(pages: Pages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pool, page, slot) of each slot in use: row after row, each in its own order."""
    _, _, span, R, M = pages.table.shape
    length = np.asarray(pages.length).reshape(-1)
    row = np.repeat(np.arange(length.size), length)
    rank = np.arange(row.size) - np.repeat(np.cumsum(length) - length, length)
    page = np.asarray(pages.table).reshape(-1, M)[row, rank // pages.page]
    return row // (span * R), page, rank % pages.page
