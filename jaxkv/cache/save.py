"""Writes a cache to one safetensors file: the slots in use, without pages or headroom.

    next_position                [B]
    layers.0.length, .overflow   [B, J, span, rows]
    layers.0.k, .v               [slots, H], head after head, each in its own order
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

import jaxkv
from jaxkv.cache.pages import Pages
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.hash import hash_tensor, model_hash
from jaxkv.models.safetensors import write

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


def sizes(config: DecoderConfig) -> dict[str, int]:
    """What a cache and its model must have in common."""
    names = ("layers", "kv_heads", "head_dim")
    return {name: getattr(config, name) for name in names}


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of all that a file says: its metadata, but this one, and its tensors."""
    digest = hashlib.sha256()
    said = {key: text for key, text in metadata.items() if key != CHECKSUM}
    digest.update(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        hash_tensor(digest.update, name, tensors[name])
    return digest.hexdigest()


def _check_fits(layers: Sequence[Pages], config: DecoderConfig) -> None:
    for pages in layers:
        _, J, span, R = pages.length.shape
        found = (len(layers) * span, J * R, pages.entry.k.shape[-1])
        if found != tuple(sizes(config).values()):
            raise ValueError(
                f"The cache has {found[0]} layers of {found[1]} kv heads of size "
                f"{found[2]}, other than the model; save it with the model that made "
                "it."
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
        "v": pages.entry.v,
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
