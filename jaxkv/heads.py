"""Heads: what a budget knows of a model before a prompt is seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxkv.models.config import DecoderConfig


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
    rows: that each layer caches, where they are not its kv heads: a budget's [L, K]
    then has some that are none, the last of their layer.
    """

    layers: int
    kv_heads: int  # the most of a layer
    calibration: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    rows: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        config: DecoderConfig,
        calibration: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> "Heads":
        """Those of a model."""
        rows = tuple(map(config.rows, range(config.layers)))
        return cls(config.layers, max(rows), calibration or {}, rows)

    def rows_of(self, layer: int) -> int:
        """The rows that a layer caches."""
        return self.rows[layer] if self.rows else self.kv_heads
