"""jaxkv.load_cache: a saved cache to pages again, with headroom of its own.

The slots come back head after head (save.py has the format) and the pages are dealt
anew. With the headroom that the cache was compressed with, each slot lies where it lay.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import Pages, PoolShape, deal
from jaxkv.cache.save import CHECKSUM, FORMAT, checksum, sizes, sizes_of_pools
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder
from jaxkv.models.hash import model_hash
from jaxkv.models.safetensors import TensorFile
from pallas_kernels.layout import MOST_SLOTS, stored

_deal = jax.jit(deal, static_argnames="shape")


def load_cache(
    file: str | os.PathLike,
    model: Decoder,
    *,
    headroom: int = 256,
    method: Method | None = None,
) -> Cache:
    """The cache that `cache.save` wrote, to be asked questions of the same model.

    headroom: tokens that can follow, whatever it was before. method: where given, it
    must be the one that the cache was saved with. Raises ValueError, one sentence, for
    a file that is cut short, altered or no cache, and for another model: its config,
    its parameters and their dtype must be those of the model that made the cache.
    """
    if headroom < 1:
        raise ValueError(f"headroom={headroom}; reserve one token at least.")
    read = TensorFile(file)
    tensors = {name: read.read(name) for name in read.names}
    about = _about(read, tensors)
    _check_model(read, about, model)
    if method is not None and repr(method) != about["method"]:
        raise ValueError(
            f"{read.path}: the cache was saved as of {about['method'] or 'no method'}, "
            f"not {method!r}; give that method, or none."
        )
    layers = [_of_layer(tensors, i) for i in range(len(about["page"]))]
    _check_tensors(read, tensors, layers, about)
    most = max(int(saved["length"].max(initial=0)) for saved in layers)
    pages = [
        _in_pages(saved, tensors["next_position"], _shape(saved, most, headroom, P))
        for saved, P in zip(layers, about["page"], strict=True)
    ]
    return Cache(tuple(pages))


def _about(read: TensorFile, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the header says, once the whole file is found to be as it was written."""
    found = read.metadata.get("format", "")
    if found != FORMAT:
        raise ValueError(
            f"{read.path}: it is no cache that this version of jaxkv saved (its format "
            f"is {found!r}, not {FORMAT!r}); give a file that cache.save wrote."
        )
    if read.metadata.get(CHECKSUM) != checksum(read.metadata, tensors):
        raise ValueError(
            f"{read.path}: the file was altered after it was saved (its {CHECKSUM} "
            "differs); save the cache again."
        )
    return json.loads(read.metadata["about"])


def _check_model(read: TensorFile, about: Mapping[str, Any], model: Decoder) -> None:
    for name, size in sizes(model.config).items():
        if about[name] != size:
            raise ValueError(
                f"{read.path}: the cache is of a model with {name}={about[name]}, and "
                f"this one has {name}={size}; load the model that made it."
            )
    ours = model_hash(model)
    if about["model"] != ours:
        raise ValueError(
            f"{read.path}: the cache is of another model (hash {about['model'][:12]}, "
            f"this one's is {ours[:12]}); load the model that made it, in the same "
            "dtype."
        )


def _of_layer(tensors: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    start = f"layers.{i}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _check_tensors(
    read: TensorFile,
    tensors: Mapping[str, np.ndarray],
    layers: list[dict[str, np.ndarray]],
    about: Mapping[str, Any],
) -> None:
    """The tensors fit together; a file with a right checksum may still be made up."""

    def fits(saved: dict[str, np.ndarray], page: int) -> bool:
        length, H = saved["length"], saved["k"].shape[-1]
        slots, B = int(length.sum(dtype=np.int64)), length.shape[0]
        by_row = {name for name in saved if name.startswith("row_state.")}
        by_row |= {"length", "overflow"}
        return (
            0 < page <= MOST_SLOTS
            and bool((length >= 0).all())
            and all(saved[name].shape[:4] == length.shape for name in by_row)
            and all(len(saved[name]) == slots for name in set(saved) - by_row)
            and saved["k"].shape == saved.get("v", saved["k"]).shape == (slots, H)
            and saved["position"].ndim == 1
            and tensors["next_position"].shape == (B,)
        )

    try:
        good = bool(layers) and all(map(fits, layers, about["page"]))
        found = sizes_of_pools((s["length"], s["k"].shape[-1]) for s in layers)
        good = good and all(about[name] == size for name, size in found.items())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"{read.path}: its tensors do not fit together; save the cache again."
        )


def _shape(
    saved: Mapping[str, np.ndarray], most: int, headroom: int, page: int
) -> PoolShape:
    """The pool of a layer; the fullest of its sequences and groups sets the size."""
    B, J, span, R = saved["length"].shape
    fullest = int(saved["length"].reshape(B, J, -1).sum(axis=-1).max(initial=0))
    return PoolShape(J, span * R, fullest, most, headroom, page, span)


def _in_pages(
    saved: Mapping[str, np.ndarray], next_position: np.ndarray, shape: PoolShape
) -> Pages:
    """One layer's slots, dealt to pages in order."""
    length = saved["length"]
    B, J = length.shape[:2]
    length_BJR = length.reshape(B, J, -1)
    owner, ordinal, table = map(np.asarray, _deal(length_BJR, shape=shape))
    row = np.maximum(owner, 0)
    rank_BJpP = ordinal[..., None] * shape.page + np.arange(shape.page)
    here = np.take_along_axis(length_BJR, row, axis=-1)[..., None]
    filled = (owner >= 0)[..., None] & (rank_BJpP < here)
    first_BJR = (np.cumsum(length) - length.reshape(-1)).reshape(length_BJR.shape)
    first = np.take_along_axis(first_BJR, row, axis=-1)[..., None]
    source = (first + rank_BJpP)[filled]

    def placed(slots: np.ndarray, empty: int = 0) -> jax.Array:
        """[slots, ...] to [B, J, pages, P, ...]."""
        pool = np.full((*filled.shape, *slots.shape[1:]), empty, slots.dtype)
        pool[filled] = slots[source]
        return jnp.asarray(pool)

    return Pages(
        entry=stored(placed(saved["k"]), placed(saved["v"]) if "v" in saved else None),
        position=placed(saved["position"], -1),
        owner=jnp.asarray(owner),
        table=jnp.asarray(table.reshape(*length.shape, -1)),
        length=jnp.asarray(length),
        next_position=jnp.array(next_position),  # each layer's own: pages are donated
        overflow=jnp.asarray(saved["overflow"]),
        slot_state=_states(saved, "slot_state.", placed),
        row_state=_states(saved, "row_state.", jnp.asarray),
    )


def _states(saved: Mapping[str, np.ndarray], start: str, place) -> dict[str, jax.Array]:
    return {
        name.removeprefix(start): place(tensor)
        for name, tensor in saved.items()
        if name.startswith(start)
    }
