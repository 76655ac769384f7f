"""The kinds of calibration there are: their arrays, and what makes them.

query_filters   filter [L, K, H]             Q-Filters
head_classes    echo, induction [L, K]       RazorAttention
gates           gate [L, K]                  DuoAttention, trained
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from jaxkv.calibrate import head_classes, query_filters
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int, str], None]  # done, total, what
Make = Callable[[Decoder, Tokenizer | None, Progress | None], Arrays]


@dataclass(frozen=True)
class Kind:
    """The arrays of a kind, by name and letters; what makes them, in words too."""

    shapes: Mapping[str, str]
    command: str
    make: Make | None = None  # None where it takes training

    def misfit(self, arrays: Mapping[str, np.ndarray], config: DecoderConfig) -> str:
        """Why arrays are no calibration of this kind for a model; empty if they are."""
        sizes = {"L": config.layers, "K": config.rows(0), "H": config.entry(0)}
        if set(arrays) != set(self.shapes):
            return f"it has {_listed(arrays)} and needs {_listed(self.shapes)}"
        for name, letters in self.shapes.items():
            wanted = tuple(sizes[letter] for letter in letters)
            found = arrays[name]
            if found.shape != wanted or found.dtype != np.float32:
                return (
                    f"{name!r} is {found.dtype.name} {list(found.shape)} and must be "
                    f"float32 {list(wanted)}"
                )
            if not np.isfinite(found).all():
                return f"{name!r} holds values that are not finite"
        return ""


KINDS: Mapping[str, Kind] = {
    "query_filters": Kind(
        {"filter": "LKH"},
        "jaxkv calibrate --method qfilters",
        query_filters.make,
    ),
    "head_classes": Kind(
        {"echo": "LK", "induction": "LK"},
        "jaxkv calibrate --method razorattention",
        head_classes.make,
    ),
    "gates": Kind({"gate": "LK"}, "jaxkv train duo_demo"),
}


def kind_of(name: str) -> Kind:
    """The kind called `name`; ValueError, one sentence, when there is none."""
    if name not in KINDS:
        raise ValueError(
            f"There is no calibration {name!r} (kinds: {', '.join(KINDS)})."
        )
    return KINDS[name]


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"
