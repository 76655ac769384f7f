"""Heads: what a budget knows of a model before a prompt is seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


def groups_note(groups: int) -> str:
    """What is otherwise where kv heads lie in several groups; nothing for one."""
    if groups == 1:
        return ""
    return (
        f"kv heads lie in {groups} groups: budgets of heads sum in each group, not "
        "over a layer, so what such rows keep differs from one chip's."
    )


@dataclass(frozen=True)
class Heads:
    """The model's layers and kv heads, and what was calibrated for it.

    calibration: by kind and name, arrays with a layer axis ("gates" -> "gate" [L, K]).
    """

    layers: int
    kv_heads: int
    calibration: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
