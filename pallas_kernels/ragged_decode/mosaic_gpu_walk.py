"""How a block on Hopper walks its share of all rows' tiles, and copies them ahead."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.ragged_decode.mosaic_gpu_join import Shape, share_of

TILE = 64  # slots of a page that are read at one time, and the rows of a product
COPY = 128  # numbers of a list that are copied at one time; 256 at most can be
AHEAD = 4  # tiles whose page is looked up before it is their turn


@dataclass(frozen=True)
class At:
    """Which tiles of the list of all a block takes, and the row of the first."""

    block: Any
    begins: Any  # where each row's tiles begin
    first: Any
    end: Any
    first_row: Any
    turns: int  # rows whose queries are held

    def turn(self, row):
        """Where a row's queries are held."""
        return lax.rem(row - self.first_row, self.turns)

    def walk(self, row_body):
        """row_body(row, where its tiles begin in all, and begin and end here)."""

        def step(carry):
            row, at = carry
            begin, until = self.begins[row], self.begins[row + 1]
            row_body(row, begin, at, jnp.minimum(until, self.end))
            return row + 1, until

        state = self.first_row, self.first
        lax.while_loop(lambda carry: carry[1] < self.end, step, state)


def find(begins, block, shape: Shape, turns: int) -> At:
    """A block's share of all tiles; the row of the first by bisection."""
    tiles = begins[shape.rows]
    share = share_of(tiles, shape.blocks)
    first = jnp.minimum(block * share, tiles)
    end = jnp.minimum(first + share, tiles)

    def halve(_, bounds):
        """To the last row that begins at or before the tile."""
        low, high = bounds
        middle = lax.div(low + high, 2)
        after = begins[middle] > first
        return jnp.where(after, low, middle), jnp.where(after, middle, high)

    steps, bounds = shape.rows.bit_length(), (jnp.int32(0), jnp.int32(shape.rows))
    first_row, _ = lax.fori_loop(0, steps, halve, bounds, unroll=True)
    return At(block, begins, first, end, first_row, turns)


@dataclass(frozen=True)
class Pages:
    """Where the tiles of each row lie."""

    shape: Shape
    table: Any

    def page(self, row, tile):
        """That a row's tile is a part of, among those of its pool."""
        m = lax.div(tile, self.shape.P // TILE)
        return self.table[row, jnp.minimum(m, self.shape.M - 1)]

    def slots(self, tile):
        """Of its page that a tile is."""
        return pl.ds(lax.rem(tile, self.shape.P // TILE) * TILE, TILE)

    def first_page(self, row):
        """Of the pool that the row is in."""
        return lax.div(row, self.shape.R) * self.shape.pages

    def place(self, row, tile):
        """A row's tile: its page among those of all pools, and its slots there."""
        return self.first_page(row) + self.page(row, tile), self.slots(tile)


@dataclass(frozen=True)
class Copies:
    """The barriers that a warpgroup which copies shares with those that compute.

    cluster: the axis of blocks that walk the same tiles and copy each together, a part
    of it each to all of them; `consumed` is then a barrier of all of them, too.
    """

    stages: int
    ready: Any  # of each stage: copied
    consumed: Any  # and computed
    q_ready: Any
    q_consumed: Any
    cluster: str | None = None

    def ahead(self, at: At, pages: Pages, queries, tiles) -> None:
        """Copies each row's queries, and tiles up to `stages` ahead of the computing.

        queries: (row, turn) to pairs of what is copied where. tiles: pairs of an array
        by page and slot, and memory by stage; a cluster shares the first.
        """

        def row_body(row, begin, low, high):
            first_page = pages.first_page(row)
            ahead = tuple(pages.page(row, low + i - begin) for i in range(AHEAD))
            turn = at.turn(row)

            @pl.when(row >= at.first_row + at.turns)
            def _():
                plgpu.barrier_wait(self.q_consumed.at[turn])

            for there, here in queries(row, turn):
                plgpu.copy_gmem_to_smem(there, here, self.q_ready.at[turn])

            def tile_body(tile, ahead):
                page, *ahead = ahead
                slots = pages.slots(tile - begin)
                later = pages.page(row, tile + AHEAD - begin)
                stage = lax.rem(tile - at.first, self.stages)

                @pl.when(tile - at.first >= self.stages)
                def _():
                    plgpu.barrier_wait(self.consumed.at[stage])

                for i, (source, memory) in enumerate(tiles):
                    there, here = source.at[first_page + page, slots], memory.at[stage]
                    plgpu.copy_gmem_to_smem(
                        there,
                        here,
                        self.ready.at[stage],
                        collective_axes=self.cluster if i == 0 else None,
                    )
                return *ahead, later

            lax.fori_loop(low, high, tile_body, ahead)

        at.walk(row_body)
        if self.cluster is not None:
            self.leave(at)

    def leave(self, at: At) -> None:
        """Waits until no block of the cluster will reach into this one any more."""
        for stage in range(self.stages):

            @pl.when(at.end - at.first > stage)
            def _(stage=stage):
                plgpu.barrier_wait(self.consumed.at[stage])
