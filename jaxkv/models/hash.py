"""A model's hash: of what it computes, wherever and however it lies.

sha256(config; each parameter's name, dtype, shape and bytes, by name)
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.params import take_apart

NOT_COMPUTED = ("initial_scale", "max_position", "stop_tokens", "repeat_tokens")


def model_hash(model: Decoder) -> str:
    """64 hex digits, the same on every host, sharding and version of jax and flax.

    Config fields that do not change a logit are left out, and so are fields at their
    default, so that a new field changes no old hash. All parameters are read, one on
    the host at a time: about a second a GB.
    """
    return hash_parameters(model.config, take_apart(model)[0])


def hash_parameters(config: DecoderConfig, parameters: Mapping[str, Array]) -> str:
    """The same of a model's parameters by path, or of some of them.

    Where several processes hold them, all have to ask.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(_described(config), sort_keys=True).encode())
    for name in sorted(parameters):
        hash_tensor(digest.update, name, _on_host(parameters[name]))
    return digest.hexdigest()


def _on_host(x: Array) -> np.ndarray:
    if not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    # np.asarray leaves its result attached to a jax array: give it one that goes.
    return np.asarray(jnp.copy(x))


def hash_tensor(update: Callable[[Any], None], name: str, tensor: np.ndarray) -> None:
    """Updates a hash by a tensor: its name, dtype, shape, and bytes in C order."""
    about = json.dumps([name, tensor.dtype.name, tensor.shape])
    update(f"\n{about}\n".encode())
    update(tensor.reshape(-1).view(np.uint8))


def _described(record: Any) -> dict[str, Any]:
    """The fields of a config, those of its records too."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in NOT_COMPUTED or value == field.default:
            continue
        found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """What JSON says of a field's value."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _described(value) if dataclasses.is_dataclass(value) else value
