"""Sizes of kernels that were measured to be best, by device kind, op and head_dim.

`tuned.json` holds them; `jaxkv bench --tune` measures anew and writes such a file.
"""

import functools
import json
from importlib import resources
from typing import Any

import jax

TABLE = "tuned.json"


@functools.cache
def table() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """{device kind: {op: {head_dim: sizes by name}}}"""
    return json.loads(resources.files("pallas_kernels").joinpath(TABLE).read_text())


def tuned(op: str, head_dim: int, sizes: type, **otherwise: Any) -> Any:
    """`sizes` as tuned for this device, or those of `otherwise`."""
    kind = jax.devices()[0].device_kind
    found = table().get(kind, {}).get(op, {}).get(str(head_dim))
    return sizes(**(otherwise if found is None else found))
