"""A value of config.json, of the type that it must have."""

import math
from collections.abc import Mapping
from typing import Any


def typed(
    data: Mapping[str, Any], key: str, kind: type, least: int | None = None
) -> Any:
    """data[key] as `kind`; numbers must be positive, or not below `least`."""
    if key not in data:
        raise ValueError(f"config.json: {key} is missing; add it.")
    value = data[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    enough = fits and (kind is bool or (value > 0 if least is None else value >= least))
    if not enough or value == math.inf:
        what = "true or false" if kind is bool else f"a positive {kind.__name__}"
        raise ValueError(f"config.json: {key} is {value!r}; it must be {what}.")
    return kind(value)
