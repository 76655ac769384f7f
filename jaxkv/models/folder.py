"""A Hugging Face model folder to a Decoder and back, bit for bit.

The folder holds config.json, generation_config.json, model.safetensors (or shards) and
tokenizer.json. How its tensors become our fused parameters is in layout.py. A folder
with an Orbax checkpoint of the parameters themselves is read too (restore.py), and one
that is an add-on of another model (base.py).
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array
from tokenizers import Tokenizer

from jaxkv.mesh import with_auto_axes
from jaxkv.models.base import OURS, base_of
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.families import read_config, stop_fields, write_config
from jaxkv.models.layout import HEAD, Placed, model_weights
from jaxkv.models.new_folder import new_folder, refuse_to_overwrite
from jaxkv.models.restore import CHECKPOINT, restored, saved_embedding
from jaxkv.models.safetensors import TensorFolder, read_json
from jaxkv.models.write_safetensors import write_folder
from jaxkv.params import take_apart
from jaxkv.rules import shardings

REPEAT = "\n\nRepeat the previous context exactly.\n\n"
READABLE = tuple(map(np.dtype, (jnp.bfloat16, np.float16, np.float32)))


def load(
    path: str | os.PathLike, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """The model in a folder, its parameters cast to `dtype`, and its tokenizer.

    Weights go to the device one by one, so the host holds one parameter at a time. On a
    mesh each lies as `jaxkv.rules` says, and a host reads the rows and columns that its
    own devices hold. The tokenizer is None where the folder has no tokenizer.json.
    Raises ValueError, one sentence, for anything missing, unknown, misshapen or left
    over, and for a mesh that does not divide a parameter.
    """
    path = Path(path)
    config, tokenizer = read_folder_config(path), tokenizer_of(path)
    if (path / CHECKPOINT).is_dir():
        model = restored(path / CHECKPOINT, _empty(config, dtype), mesh)
        return model, tokenizer
    tensors, weights = _tensors(path), model_weights(config)
    _check(tensors, weights, config)
    lies = {} if mesh is None else shardings(mesh, take_apart(_empty(config))[0])
    flat = {}
    for place, placed in weights.items():
        own = lies.get(".".join(map(str, place)))
        flat[place] = _parameter(tensors, placed, jnp.dtype(dtype), own)
    model = assemble(config, nnx.traversals.unflatten_mapping(flat), dtype)
    return model, tokenizer


def save(
    model: Decoder,
    tokenizer: Tokenizer | None,
    path: str | os.PathLike,
    dtype: DTypeLike | None = None,
    *,
    architecture: str | None = None,
) -> None:
    """Writes a new folder that `load` and transformers both read, large ones in shards.

    Only `load` does where layers attend as those of no family of theirs. `dtype` is
    that of the parameters when not given; architecture: a family to write it as, other
    than its own. All is written into a temporary
    folder beside and then renamed: the folder is there whole or not at all.
    """
    refuse_to_overwrite(Path(path))
    dtype = saved_dtype(model, dtype)
    config = model.config
    if architecture is not None:
        config = replace(config, architecture=architecture)
    described = descriptions(config, tokenizer, dtype)
    with new_folder(path) as beside:
        write_folder(beside, tensors_of(model, dtype))
        write_descriptions(beside, described, tokenizer)


def stored_dtype(path: Path) -> np.dtype:
    """What the embedding of the model in a folder is stored as.

    Raises ValueError, one sentence, where the folder has none that we can use.
    """
    if (path / CHECKPOINT).is_dir():
        return saved_embedding(path / CHECKPOINT)
    (name,) = model_weights(read_folder_config(path))["table",].names
    return _tensors(path).dtype(name)


def saved_dtype(model: Decoder, dtype: DTypeLike | None) -> np.dtype:
    """What a model's parameters are written as: as they are when not given.

    Raises ValueError, one sentence, for what no reader has weights of.
    """
    try:
        found = jnp.dtype(model.table[...].dtype if dtype is None else dtype)
    except TypeError:
        found = None
    if found not in READABLE:
        name = dtype if found is None else found.name
        raise ValueError(
            f"dtype={name} cannot be saved; give float32, bfloat16 or float16."
        )
    return found


def write_descriptions(
    folder: Path, described: Mapping[str, Any], tokenizer: Tokenizer | None
) -> None:
    """The small JSON files, and the tokenizer."""
    for name, data in described.items():
        (folder / name).write_text(json.dumps(data, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))


def read_folder_config(path: Path) -> DecoderConfig:
    """The DecoderConfig of a folder's small JSON files, and of its tokenizer."""
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: it has no config.json; give a Hugging Face model folder."
        )
    generation = path / "generation_config.json"
    stops = read_json(generation) if generation.is_file() else None
    try:
        config = read_config(read_json(path / "config.json"), stops)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return replace(config, repeat_tokens=_repeat_tokens(path, tokenizer_of(path)))


def _tensors(path: Path) -> TensorFolder:
    """A folder's, and its base's where it is an add-on."""
    base = base_of(path)
    return TensorFolder(path, None if base is None else base.tensors)


def assemble(
    config: DecoderConfig, arrays: Mapping[str, Any], dtype: DTypeLike
) -> Decoder:
    """The Decoder that holds `arrays`, nested by attribute; none is copied."""
    graph, state = nnx.split(_empty(config, dtype))
    nnx.replace_by_pure_dict(state, dict(arrays))
    return nnx.merge(graph, state)


def _empty(config: DecoderConfig, dtype: DTypeLike = jnp.float32) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))


def _parameter(
    tensors: TensorFolder,
    placed: Placed,
    dtype: np.dtype,
    lies: NamedSharding | None,
) -> Array:
    """One of our parameters, made where it is to lie."""
    fuse, config = placed.weight.fuse, placed.config
    if lies is None:
        whole = [jnp.asarray(tensors.read(name)) for name in placed.names]
        return _fusing(fuse, config, dtype, None)(whole)
    # Explicit axes would ask how each step on the way lies.
    mesh = with_auto_axes(lies.mesh)
    own = NamedSharding(mesh, _along(lies.spec, placed.weight.axes))
    parts = [_spread(tensors, name, own) for name in placed.names]
    with jax.set_mesh(mesh):
        run = _fusing(fuse, config, dtype, NamedSharding(mesh, lies.spec))
        return jax.device_put(run(parts), lies)


def _along(spec: PartitionSpec, axes: tuple[int, ...]) -> PartitionSpec:
    """How a tensor lies whose axes are those of a parameter that lies so."""
    return PartitionSpec(*(spec[axis] if axis < len(spec) else None for axis in axes))


@cache
def _fusing(fuse, config, dtype, lies):
    """One program for all layers."""
    return jax.jit(
        lambda arrays: fuse(config, *arrays).astype(dtype), out_shardings=lies
    )


def _spread(tensors: TensorFolder, name: str, lies: NamedSharding) -> Array:
    """A tensor of the folder over a mesh; devices that hold the same part share it."""
    held: dict[str, np.ndarray] = {}

    def read(index: Any) -> np.ndarray:
        key = str(index)  # slices have no hash before Python 3.12
        if key not in held:
            held[key] = tensors.read(name, index)
        return held[key]

    return jax.make_array_from_callback(tensors.shape(name), lies, read)


def _check(
    tensors: TensorFolder, weights: Mapping[Any, Placed], config: DecoderConfig
) -> None:
    """All tensors are there, of the shapes the config says, and none is left over."""
    needed = {
        name: shape
        for placed in weights.values()
        for name, shape in zip(placed.names, placed.shapes, strict=True)
    }
    for name, shape in needed.items():
        where = f"{tensors.file(name).path}: tensor {name!r}"
        if tensors.shape(name) != shape:
            raise ValueError(
                f"{where} has shape {tensors.shape(name)} where config.json asks for "
                f"{shape}; check that the two belong together."
            )
        if tensors.dtype(name) not in READABLE:
            raise ValueError(
                f"{where} is {tensors.dtype(name).name}, not a weight we can use as it "
                "is; convert it to float32, bfloat16 or float16."
            )
    for name in tensors.names:
        tied = config.tie_embeddings and name in HEAD["head",].names
        if name not in needed and not tied and not name.endswith("rotary_emb.inv_freq"):
            raise ValueError(
                f"{tensors.file(name).path}: tensor {name!r} has no place in a "
                f"{config.architecture}, so the logits would be wrong without it; "
                "use another checkpoint."
            )


def tensors_of(model: Decoder, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """A model's parameters as a folder has them, one after another."""
    arrays = nnx.traversals.flatten_mapping(
        nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )
    for path, placed in model_weights(model.config).items():
        array = np.asarray(arrays[path]).astype(dtype, copy=False)
        parts = placed.weight.split(placed.config, array)
        yield from zip(placed.names, parts, strict=True)


def descriptions(
    config: DecoderConfig, tokenizer: Tokenizer | None, dtype: np.dtype
) -> dict[str, dict[str, Any]]:
    """A folder's small JSON files, by name; ValueError for what no family has."""
    files = {"config.json": write_config(config, dtype.name)}
    files["generation_config.json"] = stop_fields(config)
    if config.repeat_tokens != _encoded(tokenizer):
        files[OURS] = {"repeat_tokens": list(config.repeat_tokens)}
    if tokenizer is not None:
        stop = (
            tokenizer.id_to_token(config.stop_tokens[0]) if config.stop_tokens else None
        )
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position,
        } | ({} if stop is None else {"eos_token": stop})
    return files


def _repeat_tokens(path: Path, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """What asks the model to repeat what it has read: jaxkv.json's, else REPEAT."""
    about = read_json(path / OURS) if (path / OURS).is_file() else {}
    if "repeat_tokens" not in about:
        return _encoded(tokenizer)
    found = about["repeat_tokens"]
    if not isinstance(found, list) or not all(type(x) is int for x in found):
        raise ValueError(
            f"{path / OURS}: repeat_tokens={found!r} is not a list of token ids; "
            "correct it or remove the file."
        )
    return tuple(found)


def _encoded(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    if tokenizer is None:
        return ()
    return tuple(tokenizer.encode(REPEAT, add_special_tokens=False).ids)


def tokenizer_of(path: Path) -> Tokenizer | None:
    """A folder's tokenizer, or its base's; None where neither has one."""
    found = read_tokenizer(path / "tokenizer.json")
    base = base_of(path) if found is None else None
    return found if base is None else read_tokenizer(base.folder / "tokenizer.json")


def read_tokenizer(path: Path) -> Tokenizer | None:
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust parser raises bare Exception
        raise ValueError(
            f"{path}: it is not a tokenizer ({error}); download it again."
        ) from None
