"""Cache: a compressed prompt, the pages of every layer."""

import os
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxkv.cache.pages import Pages, one_layer
from jaxkv.cache.save import save_pages
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder

NEVER = 2**30  # the limit of a head that nothing is evicted from


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Every layer's pages, for a batch of sequences.

    pools: one a layer, or one that all layers share. upkeep: the row that goes on
    evicting as tokens are added, if it does.
    """

    pools: tuple[Pages, ...]
    upkeep: Method | None = field(default=None, metadata={"static": True})

    @property
    def layers(self) -> tuple[Pages, ...]:
        """Each layer's own pages."""
        return tuple(
            one_layer(pages, i) for pages in self.pools for i in range(pages.span)
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes held after compression: entries, positions, tables, lengths, state."""
        return sum(pages.cache_bytes for pages in self.pools)

    @property
    def headroom_bytes(self) -> int:
        """Bytes reserved for tokens yet to come."""
        return sum(pages.headroom_bytes for pages in self.pools)

    @property
    def lengths(self) -> np.ndarray:
        """Slots in use, [L, B, K]; 0 for rows that a layer has fewer than others."""
        by_layer = [np.moveaxis(np.asarray(p.length), 2, 0) for p in self.pools]
        by_layer = [x.reshape(*x.shape[:2], -1) for x in by_layer]
        most = max(x.shape[-1] for x in by_layer)
        return np.concatenate(
            [np.pad(x, ((0, 0), (0, 0), (0, most - x.shape[-1]))) for x in by_layer]
        )

    @property
    def positions(self) -> list[list[list[np.ndarray]]]:
        """True positions held, ascending, by [layer][sequence][kv head]."""
        return [layer for pages in self.pools for layer in _held(pages)]

    @property
    def next_position(self) -> np.ndarray:
        """Where each sequence goes on, [B]."""
        return np.asarray(self.pools[0].next_position)

    @property
    def room(self) -> int:
        """Tokens that every head of every sequence can still take at one time."""
        return min(int(_free(pages).min()) for pages in self.pools)

    @property
    def lasting_room(self) -> int | None:
        """The same of heads that nothing is evicted from; None if there are none."""
        if self.upkeep is None:
            return self.room
        free = [_free(p)[np.asarray(p.row_state["limit"]) == NEVER] for p in self.pools]
        return min((int(x.min()) for x in free if x.size), default=None)

    @property
    def overflow(self) -> bool:
        """Whether some head found no slot for a token: answers are then wrong."""
        return any(bool(np.asarray(p.overflow).any()) for p in self.pools)

    def save(
        self, file: str | os.PathLike, model: Decoder, method: Method | None = None
    ) -> None:
        """Writes the slots in use to one safetensors file; `jaxkv.load_cache` reads it.

        model: the one that made the cache; no other may load it. method: the row that
        made it, noted in the file. An older file is replaced when the new one is whole.
        Raises ValueError, one sentence, where it cannot be written.
        """
        if self.upkeep is not None:
            raise ValueError(
                f"{file}: a cache whose method goes on evicting cannot be saved; "
                "compress with a row that evicts at the end of prefill only."
            )
        save_pages(self.pools, file, model, method)


# Both run on the host: eager arrays would compile programs for each shape of a pool.


def _free(pages: Pages) -> np.ndarray:
    """Slots that each head can still take, [B, J, span, rows]."""
    return pages.capacity - np.asarray(pages.length)


def _held(pages: Pages) -> list[list[list[np.ndarray]]]:
    """Positions by [layer of the span][sequence][kv head], ascending."""
    owners, positions = np.asarray(pages.owner), np.asarray(pages.position)
    J, span, R = pages.table.shape[1:4]

    def head(b: int, row: int, j: int) -> np.ndarray:
        held = positions[b, j][owners[b, j] == row]
        return np.sort(held[held >= 0])

    return [
        [
            [head(b, layer * R + r, j) for j in range(J) for r in range(R)]
            for b in range(len(owners))
        ]
        for layer in range(span)
    ]
