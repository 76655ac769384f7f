"""What a stage of training reads: documents drawn in the step, or rows of a source."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key
from tokenizers import Tokenizer

from jaxkv.evaluate.language import VOCABULARY
from jaxkv.mesh import ROWS
from jaxkv.models.config import DecoderConfig
from jaxkv.train.data.source import Source
from jaxkv.train.documents import documents
from jaxkv.train.recipe import Recipe

Batch = dict[str, Array]


class Opening(NamedTuple):
    """What rows depend on besides their source."""

    mesh: Mesh
    seed: int
    tokenizer: Tokenizer | None
    vocabulary: int
    done: int  # steps of the stage that are behind


class Feed(ABC):
    """A frozen dataclass in a stage's config.

    A batch is a dict of arrays [rows, length]: tokens and position (int32), weight
    (float32, of a token as a target) and, where documents are packed, segment (int32,
    from 1; 0 is padding).
    """

    @property
    @abstractmethod
    def shapes_of_step(self) -> tuple[tuple[int, int], ...]:
        """(rows, length) of each batch of a step."""

    def open(self, opening: Opening) -> Iterator[tuple[Batch, ...]]:
        """What each step from the first that is not behind gets from outside."""
        return repeat(())

    def source_of_rows(self) -> Source | None:
        """Whose files must stay as they are while the run lasts; None for none."""
        return None

    def batches(
        self, key: Key[Array, ""], given: tuple[Batch, ...], multiple: int
    ) -> tuple[Batch, ...]:
        """A step's batches, inside the step; their rows are a multiple of that."""
        return given

    def abstract(self, mesh: Mesh) -> tuple[dict[str, Any], ...]:
        """What `open` gives for a step, without content."""
        return ()

    @abstractmethod
    def check(self, model: DecoderConfig, multiple: int) -> None:
        """Raises ValueError, one sentence, where it does not fit a model or a mesh."""

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return sum(rows * length for rows, length in self.shapes_of_step)


@dataclass(frozen=True)
class Documents(Feed):
    """Documents in the demo model's language, drawn in the step from its number.

    Attributes:
      shapes: (rows, length) of each batch of a step.
      weigh: every token by its recipe, or the words of answers alone and alike.
    """

    shapes: tuple[tuple[int, int], ...] = ((1, 1024),)
    recipe: Recipe = field(default_factory=Recipe)
    weigh: Literal["recipe", "answers"] = "recipe"

    @property
    def shapes_of_step(self) -> tuple[tuple[int, int], ...]:
        return self.shapes

    def batches(
        self, key: Key[Array, ""], given: tuple[Batch, ...], multiple: int
    ) -> tuple[Batch, ...]:
        drawn = []
        for i, (rows, length) in enumerate(self.shapes):
            own = jax.random.fold_in(key, i)
            batch = documents(own, rows, length, self.recipe, multiple)
            if self.weigh == "answers":
                batch["weight"] = (batch["answer"] > 0).astype(jnp.float32)
            drawn.append(batch)
        return tuple(drawn)

    def check(self, model: DecoderConfig, multiple: int) -> None:
        if model.vocabulary != len(VOCABULARY):
            raise ValueError(
                f"The model knows {model.vocabulary} tokens, but documents are made of "
                f"the demo's {len(VOCABULARY)} words; give a model of that vocabulary."
            )
        reach = self.recipe.max_position
        for rows, length in self.shapes:
            if rows < 1 or not 64 <= length <= reach:
                raise ValueError(
                    f"shapes has {rows} rows of {length} words; give a row at least, "
                    f"of 64 to recipe.max_position={reach} words."
                )
        if reach > model.max_position and self.recipe.gaps > 0:
            raise ValueError(
                f"Documents at positions below {reach} do not fit "
                f"model.max_position={model.max_position}."
            )
        longest = max(length for _, length in self.shapes)
        if longest > model.max_position:
            raise ValueError(
                f"Documents of {longest} words pass the model's context of "
                f"{model.max_position}; give that at most."
            )


def global_batch(rows: int, mesh: Mesh, local: dict[str, np.ndarray]) -> Batch:
    """This process's rows of a batch as its part of arrays over the whole mesh."""
    lies = NamedSharding(mesh, PartitionSpec(ROWS))
    return {
        name: jax.make_array_from_process_local_data(lies, x, (rows, *x.shape[1:]))
        for name, x in local.items()
    }


def abstract_batch(rows: int, length: int, mesh: Mesh, *names: str) -> dict[str, Any]:
    """Arrays of a batch without content, by name."""
    lies = NamedSharding(mesh, PartitionSpec(ROWS))
    dtypes = {name: jnp.float32 if name == "weight" else jnp.int32 for name in names}
    return {
        name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=lies)
        for name, dtype in dtypes.items()
    }


def share(rows: int, mesh: Mesh) -> tuple[int, int]:
    """(which part of a batch's rows is this process's, of how many parts)."""
    lies = NamedSharding(mesh, PartitionSpec(ROWS))
    places: Any = lies.addressable_devices_indices_map((rows,)).values()
    bounds = {place[0].indices(rows)[:2] for place in places}
    first, last = min(start for start, _ in bounds), max(stop for _, stop in bounds)
    return first // (last - first), rows // (last - first)
