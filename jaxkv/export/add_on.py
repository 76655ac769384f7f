"""A model as an add-on of another: the tensors that the other has not, or otherwise.

The folder has the whole model's config.json, a jaxkv.json that names the base
(`jaxkv.models.base`), and a model.safetensors of what differs: the bases of low-rank
attention, say, of a model that is frozen besides. `jaxkv.load` reads it with its base,
which stays as it is for everybody else.
"""

import json
import os
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.models.base import BASE, OURS, fingerprint, open_base
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import (
    descriptions,
    read_tokenizer,
    saved_dtype,
    tensors_of,
    write_descriptions,
)
from jaxkv.models.new_folder import new_folder, refuse_to_overwrite
from jaxkv.models.safetensors import SINGLE, TensorFolder
from jaxkv.models.write_safetensors import write

DEFAULT = "demo"


def write_add_on(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
    base: str | os.PathLike = DEFAULT,
) -> list[str]:
    """Writes the folder, and says how much of the model is in it.

    base: a model as `jaxkv.load` names it; a folder stands in the add-on by its path
    from there, so that both can be moved together. The tokenizer is written where the
    base's is another.

    Raises:
      ValueError: there is no such base, it is an add-on itself, or nothing of the model
        is the base's.
    """
    refuse_to_overwrite(Path(out))
    dtype = saved_dtype(model, dtype)
    whose = open_base(base)
    tensors = dict(tensors_of(model, dtype))
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if not _same(whose.tensors, name, tensor)
    }
    if len(own) == len(tensors):
        raise ValueError(
            f"None of the model's {len(tensors)} tensors is {base}'s, so that it would "
            "be no add-on; give the base that it was made from, or --format hf."
        )
    described = descriptions(model.config, tokenizer, dtype)
    name = os.fspath(base)
    if Path(name).is_dir():
        name = os.path.relpath(name, out)
    named = {BASE: {"model": name, "rows": fingerprint(whose.tensors)}}
    described[OURS] = described.get(OURS, {}) | named
    if _words(tokenizer) == _words(read_tokenizer(whose.folder / "tokenizer.json")):
        tokenizer = None
        described.pop("tokenizer_config.json", None)
    with new_folder(out) as beside:
        write(beside / SINGLE, own)
        write_descriptions(beside, described, tokenizer)
    size = sum(tensor.nbytes for tensor in own.values())
    told = f"{len(own)} of {len(tensors)} tensors, {size} bytes"
    return [f"{told}; the rest is {base}'s."]


def _same(base: TensorFolder, name: str, tensor: np.ndarray) -> bool:
    """Whether the base has this very tensor, once both are of one dtype."""
    if name not in base.names or base.shape(name) != tensor.shape:
        return False
    return np.array_equal(base.read(name).astype(tensor.dtype), tensor)


def _words(tokenizer: Tokenizer | None) -> dict | None:
    return None if tokenizer is None else json.loads(tokenizer.to_str())
