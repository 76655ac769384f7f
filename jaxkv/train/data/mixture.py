"""Several sources as one."""

from dataclasses import dataclass, replace
from pathlib import Path

import grain

from jaxkv.train.data.source import Opening, Source, sub_seed


@dataclass(frozen=True)
class Mixture(Source):
    """Rows of several sources, in fixed shares.

    `weights` are the shares of rows, and so of tokens where rows are full, by source,
    alike when not given; they need not sum to 1. The shares hold in every stretch of
    rows, to within a row of each source, and so in every step. Sources go on without
    end, each in epochs of its own: a small one is seen more often, not longer.

    Example:
      >>> from jaxkv.train.data import Tasks, TextFiles
      >>> Mixture((TextFiles(("books/*.txt",)), Tasks()), weights=(3, 1)).weights
      (3, 1)

    Raises ValueError: there is no source, or weights are not one above 0 for each.
    """

    sources: tuple[Source, ...]
    weights: tuple[float | int, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("A mixture needs a source at least.")
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"A mixture of {len(self.sources)} sources has {len(self.weights)} "
                "weights; give one for each."
            )
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise ValueError(f"weights={self.weights} are not all above 0.")

    def files(self) -> tuple[Path, ...]:
        """The files of all sources."""
        every = (path for source in self.sources for path in source.files())
        return tuple(dict.fromkeys(every))

    def rows(self, opening: Opening) -> grain.MapDataset:
        """The rows of the sources, mixed by grain."""
        mixed = [
            source.rows(replace(opening, seed=sub_seed(opening.seed, 2, i)))
            for i, source in enumerate(self.sources)
        ]
        return grain.MapDataset.mix(mixed, self.weights or None)
