"""Heads: what a budget knows of a model before a prompt is seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Heads:
    """The model's layers and kv heads, and what was calibrated for it.

    calibration: by kind and name, arrays with a layer axis ("gates" -> "gate" [L, K]).
    """

    layers: int
    kv_heads: int
    calibration: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
