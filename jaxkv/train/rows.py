"""Rows of a source (`jaxkv.train.data`), shared among the processes of a mesh."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from jaxkv.models.config import DecoderConfig
from jaxkv.train.data.batches import batches
from jaxkv.train.data.source import Source
from jaxkv.train.feeding import (
    Batch,
    Feed,
    Opening,
    abstract_batch,
    global_batch,
    share,
)


@dataclass(frozen=True)
class Rows(Feed):
    """`rows` rows a step, of `length` tokens each, of documents packed by the source.

    `apart`: documents in a row do not see each other. Where they may, attention is that
    of plain rows, which on a GPU is cuDNN's.

    Raises:
      ValueError: there is no row, or fewer than two tokens.
    """

    source: Source
    rows: int = 8
    length: int = 2048
    apart: bool = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length < 2:
            raise ValueError(
                f"rows={self.rows} and length={self.length}; give a row at least, of "
                "two tokens."
            )

    @property
    def shapes_of_step(self) -> tuple[tuple[int, int], ...]:
        return ((self.rows, self.length),)

    def source_of_rows(self) -> Source:
        return self.source

    def check(self, model: DecoderConfig, multiple: int) -> None:
        if self.length > model.max_position:
            raise ValueError(
                f"Rows of {self.length} tokens pass the model's context of "
                f"{model.max_position}; give that at most."
            )
        if self.rows % multiple:
            raise ValueError(
                f"{self.rows} rows a step do not divide by {multiple}, the mesh's data "
                f"x fsdp times the run's micro; give a multiple of {multiple}."
            )

    def abstract(self, mesh: Mesh) -> tuple[dict[str, Any], ...]:
        return (abstract_batch(self.rows, self.length, mesh, *self._names),)

    @property
    def _names(self) -> tuple[str, ...]:
        names = ("tokens", "position", "weight")
        return (*names, "segment") if self.apart else names

    def open(self, opening: Opening) -> Iterator[tuple[Batch, ...]]:
        part, parts = share(self.rows, opening.mesh)
        steps = batches(
            self.source,
            rows=self.rows // parts,
            length=self.length,
            seed=opening.seed,
            tokenizer=opening.tokenizer,
            vocabulary=opening.vocabulary,
            process_index=part,
            process_count=parts,
        )
        # Where the rows go on follows from the step: nothing else need be saved.
        steps.set_state({"global_next_index": self.rows * opening.done})
        try:
            for batch in steps:
                local = {name: batch[name] for name in self._names}
                yield (global_batch(self.rows, opening.mesh, local),)
        finally:
            steps.close()
