"""Small runs that tests of training share, on batches that cost nothing to make."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from jaxkv.models.config import DecoderConfig
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import (
    Batch,
    Feed,
    Opening,
    abstract_batch,
    global_batch,
    share,
)
from jaxkv.train.optimizers import AdamW
from jaxkv.train.schedules import WarmupCosine

MODEL = DecoderConfig(
    vocabulary=64,
    width=32,
    feed_forward=32,
    layers=2,
    query_heads=8,
    kv_heads=4,
    head_dim=8,
    tie_embeddings=True,
    max_position=256,
    initial_scale=0.2,
)


@dataclass(frozen=True)
class Packed(Feed):
    """Random rows of two documents and some padding, the same on any mesh."""

    rows: int = 8
    length: int = 48

    @property
    def shapes_of_step(self) -> tuple[tuple[int, int], ...]:
        return ((self.rows, self.length),)

    def check(self, model: DecoderConfig, multiple: int) -> None:
        if self.rows % multiple:
            raise ValueError(f"{self.rows} rows are no multiple of {multiple}.")

    def abstract(self, mesh: jax.sharding.Mesh) -> tuple[dict, ...]:
        names = ("tokens", "segment", "position", "weight")
        return (abstract_batch(self.rows, self.length, mesh, *names),)

    def open(self, opening: Opening) -> Iterator[tuple[Batch, ...]]:
        part, parts = share(self.rows, opening.mesh)
        size = self.rows // parts
        mine = slice(part * size, (part + 1) * size)
        number = opening.done
        while True:
            whole = self.numbered(opening.seed, number, opening.vocabulary)
            local = {name: x[mine] for name, x in whole.items()}
            yield (global_batch(self.rows, opening.mesh, local),)
            number += 1

    def numbered(
        self, seed: int, number: int, vocabulary: int
    ) -> dict[str, np.ndarray]:
        """All rows of a step, on the host."""
        draw = np.random.default_rng([seed, number])
        tokens = draw.integers(0, vocabulary, (self.rows, self.length), dtype=np.int32)
        ends = np.sort(draw.integers(4, self.length, (self.rows, 2)), axis=1)
        place = np.arange(self.length)[None]
        segment = np.where(place < ends[:, :1], 1, np.where(place < ends[:, 1:], 2, 0))
        position = np.where(segment == 1, place, place - ends[:, :1])
        position = np.where(segment > 0, position, 0)
        weight = (segment > 0) & (position > 0)
        return {
            "tokens": np.where(segment > 0, tokens, 0).astype(np.int32),
            "segment": segment.astype(np.int32),
            "position": position.astype(np.int32),
            "weight": weight.astype(np.float32),
        }


RUN = Train(
    model=MODEL,
    stages=(Stage(4, Packed()),),
    optimizer=AdamW(rate=WarmupCosine(1e-2, warmup=1)),
    dtype="float32",
    log_every=1,
)
