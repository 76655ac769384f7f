"""The first kernel of ragged_decode on Hopper: what one block does of its tiles.

One warpgroup copies tiles to shared memory ahead of another, which computes. Slots are
the rows of both products and the T G queries the columns, so that few queries cost
little: z [slots, queries] = k q^T, an online softmax over the rows, and then
out [V, queries] = v^T p. Positions say what is live, so they are copied beside. Of a
latent there is one array, and its first numbers are the values.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import ALIGNED, load, tiled
from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST
from pallas_kernels.ragged_decode.mosaic_gpu_join import Shape
from pallas_kernels.ragged_decode.mosaic_gpu_walk import (
    COPY,
    TILE,
    At,
    Copies,
    Pages,
    find,
)

NO_TOKEN = jnp.iinfo(jnp.int32).max
OF_SLOTS, OF_QUERIES = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclass(frozen=True)
class Read:
    """The kernel, for such shapes: one block of its grid.

    numbers: of a key. latent: shape.H of them are the value, which has no array of its
    own. one_token: all queries of a row are one token's, so that a slot is live for all
    of them or for none. turns: rows whose queries are held; of two, the next row's come
    while one is computed.
    """

    shape: Shape
    numbers: int
    latent: bool
    one_token: bool
    dtype: Any
    stages: int
    turns: int
    scale: float
    soft_cap: float | None
    window: int | None
    has_bias: bool
    has_logits: bool

    @property
    def columns(self) -> int:
        """Values of a slot that one product gives, 64 or 128."""
        H = self.shape.H
        return min(H, 128) if H % TILE == 0 else TILE

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each product's values begin: of 96, 32 are computed twice."""
        last = self.shape.H - self.columns
        return tuple(min(at, last) for at in range(0, self.shape.H, self.columns))

    @property
    def pool(self) -> tuple[str, ...]:
        """What is copied of each slot, in the order of the kernel's arguments."""
        values, bias = ("v",) * (not self.latent), ("bias",) * self.has_bias
        return "k", *values, "position", *bias

    def __call__(self, start, table, q, seen_from, *refs):
        pool = dict(zip(self.pool, refs, strict=False))
        out, lse, *logits = refs[len(pool) :]

        def body(memory, barriers):
            block = Block(self, Pages(self.shape, table), memory, *barriers)
            thread = lax.axis_index("warpgroup")
            at = block.find(start, thread)
            pl.when(thread == 0)(
                lambda: block.compute(at, seen_from, out, lse, *logits)
            )
            pl.when(thread == 1)(lambda: block.copy(at, q, seen_from, pool))

        memory, barriers = self.memory(start.shape[0])
        pl.run_scoped(body, memory, barriers, collective_axes="warpgroup")

    def memory(self, starts: int) -> tuple[dict, tuple]:
        """Shared memory by name, and the barriers of a Block."""
        N, stages, turns = self.shape.queries, self.stages, self.turns

        def operand(*shape):
            return tiled(shape, self.dtype, self.numbers)

        def plain(dtype, *shape):
            return plgpu.SMEM(shape, dtype)

        memory = dict(
            start=plain(jnp.int32, starts),
            q=operand(turns, N, self.numbers),
            q_at=plain(jnp.int32, turns, max(N, ALIGNED)),
            k=operand(stages, TILE, self.numbers),
            position=plain(jnp.int32, stages, TILE),
            p=operand(N, TILE),
            out=tiled((N, self.columns), jnp.float32, self.shape.H),
            lse=plain(jnp.float32, N),
        )
        if not self.latent:
            memory["v"] = operand(stages, TILE, self.shape.H)
        if self.has_bias:
            memory["bias"] = plain(jnp.float32, stages, TILE)
        if self.has_logits:
            memory["logits"] = plain(jnp.float32, TILE, N)
        barriers = (
            plgpu.Barrier(num_arrivals=len(self.pool), num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=2 - self.one_token, num_barriers=turns),
            plgpu.Barrier(num_barriers=turns),
            plgpu.Barrier(num_arrivals=starts // COPY),
        )
        return memory, barriers


@dataclass(frozen=True)
class Block:
    """What the two warpgroups of a block share: memory, barriers, the rows' pages."""

    how: Read
    pages: Pages
    memory: dict
    ready: Any  # of each stage: copied
    consumed: Any  # and computed
    q_ready: Any
    q_consumed: Any
    come: Any

    def find(self, start, thread) -> At:
        """The block's share of all tiles, by where each row's begin."""
        begins = self.memory["start"]

        @pl.when(thread == 1)
        def _():
            for at in range(0, start.shape[0], COPY):
                part = pl.ds(at, COPY)
                plgpu.copy_gmem_to_smem(start.at[part], begins.at[part], self.come)

        plgpu.barrier_wait(self.come)
        block = lax.axis_index("block")
        return find(begins, block, self.how.shape, self.how.turns)

    def copy(self, at: At, q, seen_from, pool) -> None:
        """Copies queries and tiles, up to `stages` ahead of the computing."""
        memory, shape = self.memory, self.how.shape
        q_at = memory["q_at"].at[:, pl.ds(0, shape.queries)]

        def queries(row, turn):
            own = q.at[lax.div(row, shape.together)], memory["q"].at[turn]
            if self.how.one_token:
                return (own,)
            return own, (seen_from.at[lax.div(row, shape.sequence)], q_at.at[turn])

        tiles = [(x, memory[name]) for name, x in pool.items()]
        Copies(self.how.stages, *self.barriers).ahead(at, self.pages, queries, tiles)

    @property
    def barriers(self) -> tuple:
        """Of tiles, and of queries: copied, and computed."""
        return self.ready, self.consumed, self.q_ready, self.q_consumed

    def compute(self, at: At, seen_from, out, lse, logits=None) -> None:
        """Each row's tiles here, and what came of them as a piece."""
        N, columns = self.how.shape.queries, self.how.columns

        def row_body(row, begin, low, high):
            turn = at.turn(row)
            plgpu.barrier_wait(self.q_ready.at[turn])
            if self.how.one_token:
                q_at = seen_from[lax.div(row, self.how.shape.sequence), 0]
            else:
                q_at = self.memory["q_at"].at[turn, pl.ds(0, N)]
                q_at = self.by_query(load(q_at, OF_QUERIES))

            def tile_body(tile, carry):
                highest, total, *values = carry
                stage = lax.rem(tile - at.first, self.how.stages)
                plgpu.barrier_wait(self.ready.at[stage])
                z = self.logits_of(stage, turn, q_at)
                if logits is not None:
                    page, slots = self.pages.place(row, tile - begin)
                    self.store(z, logits.at[page, slots])
                higher = jnp.maximum(highest, z.max(axis=0))
                shrink = jnp.exp2(highest - higher)
                p = jnp.exp2(z - self.by_query(higher))
                total = total * self.by_query(shrink) + p
                values = self.add_values(stage, p, shrink, values)
                plgpu.barrier_arrive(self.consumed.at[stage])
                return higher, total, *values

            nothing = (
                _filled(FLOOR, (N,), OF_QUERIES),
                _filled(0.0, (TILE, N)),
                *[_filled(0.0, (columns, N))] * len(self.how.offsets),
            )
            highest, total, *values = lax.fori_loop(low, high, tile_body, nothing)
            plgpu.barrier_arrive(self.q_consumed.at[turn])
            piece = row + at.block
            self.finish(highest, total, values, out.at[piece], lse.at[piece])

        at.walk(row_body)
        plgpu.wait_smem_to_gmem(0)

    def logits_of(self, stage, turn, q_at):
        """[slots, queries] of a tile, in units of log 2; LOWEST where not live."""
        how, memory = self.how, self.memory

        def product(ref):
            queries = memory["q"].at[turn].transpose((1, 0))
            plgpu.wgmma(ref, memory["k"].at[stage], queries)
            return ref[...]

        z = pl.run_scoped(product, plgpu.ACC((TILE, how.shape.queries), jnp.float32))
        if how.soft_cap is None:
            z = z * (how.scale * LOG2E)
        else:  # tanh x = 1 - 2 / (1 + exp 2x)
            grown = jnp.exp2(z * (2 * LOG2E * how.scale / how.soft_cap))
            cap = how.soft_cap * LOG2E
            z = cap - 2 * cap / (grown + 1.0)
        if how.has_bias:
            z = z + self.by_slot(load(memory["bias"].at[stage], OF_SLOTS) * LOG2E)
        at_k = load(memory["position"].at[stage], OF_SLOTS)
        return jnp.where(seen(at_k, q_at, how.window, self.by_slot), z, LOWEST)

    def store(self, z, there) -> None:
        """A tile's logits, in natural units."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self.memory["logits"][...] = z * (1 / LOG2E)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.memory["logits"], there)

    def add_values(self, stage, p, shrink, values) -> list:
        """values * shrink + v^T p, each of `columns` values."""
        memory, columns = self.memory, self.how.columns
        memory["p"].transpose((1, 0))[...] = p.astype(self.how.dtype)
        plgpu.commit_smem()

        def add(refs):
            v, weights = memory.get("v", memory["k"]), memory["p"].transpose((1, 0))
            for offset, ref in zip(self.how.offsets, refs, strict=True):
                part = v.at[stage, :, pl.ds(offset, columns)]
                plgpu.wgmma(ref, part.transpose((1, 0)), weights)

        shrink = self.by_query(shrink, columns)
        return pl.run_state(add)([plgpu.ACC.init(value * shrink) for value in values])

    def finish(self, highest, total, values, out, lse) -> None:
        """Writes a piece: out [queries, H] and lse [queries]."""
        memory, columns = self.memory, self.how.columns
        total = total.sum(axis=0)
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        logsum = jnp.where(some, highest + jnp.log2(safe), LOWEST)
        memory["lse"][...] = logsum
        for offset, value in zip(self.how.offsets, values, strict=True):
            if offset:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            found = value / self.by_query(safe, columns)
            found = plgpu.layout_cast(found, plgpu.Layout.WGMMA_TRANSPOSED)
            memory["out"].transpose((1, 0))[...] = found
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(memory["out"], out.at[:, pl.ds(offset, columns)])
        plgpu.copy_smem_to_gmem(memory["lse"], lse)

    def by_slot(self, x):
        """A number a slot, for every query."""
        return lax.broadcast_in_dim(x, (TILE, self.how.shape.queries), [0])

    def by_query(self, x, height: int = TILE):
        """A number a query, in every row."""
        return lax.broadcast_in_dim(x, (height, self.how.shape.queries), [1])


def seen(at_k, q_at, window: int | None, by_slot):
    """Whether each query sees each slot; no token is where at_k is negative.

    q_at is a position for every slot and query, or one for all queries: then slots
    alone are compared. by_slot spreads what is known of slots over queries.
    """
    one = jnp.ndim(q_at) == 0
    at_k = jnp.where(at_k >= 0, at_k, NO_TOKEN)
    at_k = at_k if one else by_slot(at_k)
    live = at_k <= q_at
    if window is not None:
        live = live & (at_k > q_at - window)
    return by_slot(live) if one else live


def _filled(value: float, size: tuple[int, ...], layout=plgpu.Layout.WGMMA):
    return plgpu.layout_cast(jnp.full(size, value, jnp.float32), layout)
