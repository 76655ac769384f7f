"""The first kernel of latent_decode on Hopper: what one block does of its tiles.

64 queries are the rows of both products. Their outputs, of up to 512 numbers each, pass
what one warpgroup's registers hold, so that two have a half each, and a third copies:

    weigh   z = q k^T [queries, slots], an online softmax over the slots, its weights to
            shared memory, and the left half of  out = p v
    add     the right half of out, by the weights that it finds there
    copy    tiles, as far ahead as shared memory holds them: two of 64 x 576 numbers

The next tile's q k^T follows on this tile's p v, so that the chip's products do not
wait for weights to be scaled in between.

What stands in shared memory is q, tiles and weights, and nearly fills it.
"""

from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import load, tiled
from pallas_kernels.log2 import FLOOR, LOG2E, LOWEST
from pallas_kernels.ragged_decode.mosaic_gpu_join import Shape
from pallas_kernels.ragged_decode.mosaic_gpu_read import seen
from pallas_kernels.ragged_decode.mosaic_gpu_walk import TILE, At, Copies, Pages, find

QUERIES = 64  # of a block, the rows of a product
COMPUTING, COPYING = 232, 40  # registers of a thread
CLUSTER = "part"  # the axis of a cluster's blocks
SCORES = plgpu.ACC((QUERIES, TILE), jnp.float32)
MATRIX = plgpu.Layout.WGMMA
OF_QUERIES, OF_SLOTS = MATRIX.reduce(1), MATRIX.reduce(0)


@dataclass(frozen=True)
class Read:
    """The kernel, for such shapes: one block of its grid.

    shape.H numbers of a value begin the `numbers` of a latent. parts: of a row's
    queries, 64 each; two of them are a cluster, whose blocks copy each tile once, and
    more clusters of one share stand side by side, and find each other's tiles in the
    chip's cache. one_token: all queries of a row are one token's.
    """

    shape: Shape
    numbers: int
    parts: int
    one_token: bool
    dtype: Any
    stages: int
    scale: float
    soft_cap: float | None
    window: int | None
    has_bias: bool
    has_logits: bool

    @property
    def cluster(self) -> int:
        """Blocks that copy each tile together."""
        return 2 if self.parts % 2 == 0 else 1

    @property
    def half(self) -> int:
        """Numbers of a value that one warpgroup adds."""
        return self.shape.H // 2

    def __call__(self, start, table, q, seen_from, row, position, *rest):
        bias, rest = (rest[0], rest[1:]) if self.has_bias else (None, rest)
        out, lse, *logits = rest

        def body(memory, barriers):
            block = lax.axis_index("block")
            if self.cluster > 1:
                block = block * self.cluster + lax.axis_index(CLUSTER)
            at = find(start, lax.div(block, self.parts), self.shape, turns=1)
            pages, part = Pages(self.shape, table), lax.rem(block, self.parts)
            shared = Shared(self, pages, part, at, seen_from, memory, *barriers)
            thread = lax.axis_index("warpgroup")
            pl.when(thread == 0)(lambda: shared.weigh(out, lse, *logits))
            pl.when(thread == 1)(lambda: shared.add(out))
            pl.when(thread == 2)(lambda: shared.copy(q, row, position, bias))

        pl.run_scoped(body, *self.memory(), collective_axes="warpgroup")

    def memory(self) -> tuple[dict, tuple]:
        """Shared memory by name, and the barriers of `Shared`.

        Every array begins at a multiple of 1024 bytes, so that small ones are one.
        """
        stages, both = self.stages, gcd(self.numbers, self.half)
        memory = dict(
            q=tiled((1, QUERIES, self.numbers), self.dtype, both),
            row=tiled((stages, TILE, self.numbers), self.dtype, both),
            p=tiled((QUERIES, TILE), self.dtype, both),
            places=plgpu.SMEM((stages + 1, TILE), jnp.int32),  # slots', and queries'
            factors=plgpu.SMEM((stages + 1, TILE), jnp.float32),  # biases, and shrink
        )
        consumed = dict(num_arrivals=2, num_barriers=stages)
        if self.cluster > 1:
            computed = plgpu.ClusterBarrier(collective_axes=(CLUSTER,), **consumed)
        else:
            computed = plgpu.Barrier(**consumed)
        barriers = (
            plgpu.Barrier(num_arrivals=3 if self.has_bias else 2, num_barriers=stages),
            computed,
            plgpu.Barrier(num_arrivals=2 - self.one_token, num_barriers=1),
            plgpu.Barrier(num_barriers=1),
            plgpu.Barrier(),
            plgpu.Barrier(),
        )
        return memory, barriers


@dataclass(frozen=True)
class Shared:
    """What the three warpgroups of a block share."""

    how: Read
    pages: Pages
    part: Any
    at: At
    seen_from: Any
    memory: dict
    ready: Any  # of each stage: copied
    consumed: Any  # and computed, by both
    q_ready: Any
    q_consumed: Any
    said: Any  # weights and factors, for `add`
    heard: Any  # and read by it

    @property
    def mine(self):
        """Of a row's queries."""
        return pl.ds(self.part * QUERIES, QUERIES)

    @property
    def factor(self):
        """By which `add` is to multiply what it has."""
        return self.memory["factors"].at[self.how.stages]

    def stage(self, tile):
        return lax.rem(tile - self.at.first, self.how.stages)

    def copy(self, q, row, position, bias) -> None:
        """Copies queries and tiles, up to `stages` ahead of the computing."""
        plgpu.set_max_registers(COPYING, action="decrease")
        memory, how = self.memory, self.how

        def queries(row, turn):
            own = q.at[row, self.mine], memory["q"].at[turn]
            if how.one_token:
                return (own,)
            seen_from = self.seen_from.at[lax.div(row, how.shape.sequence), self.mine]
            return own, (seen_from, memory["places"].at[how.stages])

        tiles = [(row, memory["row"]), (position, memory["places"])]
        if bias is not None:
            tiles.append((bias, memory["factors"]))
        barriers = self.ready, self.consumed, self.q_ready, self.q_consumed
        cluster = CLUSTER if how.cluster > 1 else None
        copies = Copies(how.stages, *barriers, cluster)
        copies.ahead(self.at, self.pages, queries, tiles)

    def weigh(self, out, lse, logits=None) -> None:
        """Each row's weights here, the left half of what they give, and their lse."""
        plgpu.set_max_registers(COMPUTING, action="increase")
        how = self.how

        def row_body(row, begin, low, high):
            plgpu.barrier_wait(self.q_ready.at[0])
            if how.one_token:
                q_at = self.seen_from[lax.div(row, how.shape.sequence), 0]
            else:
                q_at = load(self.memory["places"].at[how.stages], OF_QUERIES)
                q_at = by_query(q_at, TILE)

            def first(tile, _):
                plgpu.barrier_wait(self.ready.at[self.stage(tile)])
                return pl.run_scoped(partial(self.products, tile), SCORES)

            def tile_body(tile, carry, last: bool):
                highest, total, value, z = carry
                stage = self.stage(tile)
                z = self.logits_of(z, stage, q_at)
                if logits is not None:
                    page, slots = self.pages.place(row, tile - begin)
                    logits[page, self.mine, slots] = z * (1 / LOG2E)
                higher = jnp.maximum(highest, z.max(axis=1))
                shrink = jnp.exp2(highest - higher)
                p = jnp.exp2(z - by_query(higher, TILE))
                weights = p.astype(how.dtype)
                pl.when(tile > self.at.first)(self.wait_heard)
                self.memory["p"][...] = weights
                self.say(shrink)
                total = total * shrink + p.sum(axis=1)
                if last:
                    value = self.product(stage, weights, shrink, value, 0)
                    plgpu.barrier_arrive(self.consumed.at[stage])
                else:
                    value, z = self.product_and_next(tile, weights, shrink, value)
                return higher, total, value, z

            nothing = (
                _filled(FLOOR, (QUERIES,), OF_QUERIES),
                _filled(0.0, (QUERIES,), OF_QUERIES),
                _filled(0.0, (QUERIES, how.half)),
            )
            # A row may have no tile here: then none of the loops does anything.
            z = _filled(0.0, (QUERIES, TILE))
            z = lax.fori_loop(low, jnp.minimum(low + 1, high), first, z)
            last = jnp.maximum(low, high - 1)
            carry = lax.fori_loop(
                low, last, partial(tile_body, last=False), (*nothing, z)
            )
            carry = lax.fori_loop(last, high, partial(tile_body, last=True), carry)
            highest, total, value, _ = carry
            plgpu.barrier_arrive(self.q_consumed.at[0])
            some = total > 0
            safe = jnp.where(some, total, 1.0)
            self.wait_heard()
            self.say(1.0 / safe)
            piece = row + self.at.block
            lse[piece, self.mine] = jnp.where(some, highest + jnp.log2(safe), LOWEST)
            self.store(value, 1.0 / safe, out, piece, 0)

        self.at.walk(row_body)

    def add(self, out) -> None:
        """The right half of what each row's weights give."""
        plgpu.set_max_registers(COMPUTING, action="increase")

        def row_body(row, begin, low, high):
            def tile_body(tile, value):
                stage = self.stage(tile)
                plgpu.barrier_wait(self.ready.at[stage])
                plgpu.barrier_wait(self.said)
                shrink = load(self.factor, OF_QUERIES)
                weights = load(self.memory["p"], MATRIX)
                plgpu.barrier_arrive(self.heard)  # `weigh` may write the next
                value = self.product(stage, weights, shrink, value, self.how.half)
                plgpu.barrier_arrive(self.consumed.at[stage])
                return value

            nothing = _filled(0.0, (QUERIES, self.how.half))
            value = lax.fori_loop(low, high, tile_body, nothing)
            plgpu.barrier_wait(self.said)
            share = load(self.factor, OF_QUERIES)
            plgpu.barrier_arrive(self.heard)
            self.store(value, share, out, row + self.at.block, self.how.half)

        self.at.walk(row_body)

    def wait_heard(self) -> None:
        plgpu.barrier_wait(self.heard)

    def say(self, factor) -> None:
        """Lets `add` go on, by a factor and by the weights that were written."""
        self.factor[...] = factor
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.said)

    def products(self, tile, ref):
        """q k^T of a tile that has come."""
        keys = self.memory["row"].at[self.stage(tile)].transpose((1, 0))
        plgpu.wgmma(ref, self.memory["q"].at[0], keys)
        return ref[...]

    def product_and_next(self, tile, weights, shrink, value):
        """`product` of a tile's left half, and meanwhile q k^T of the tile after it."""
        stage = self.stage(tile)

        def both(refs):
            value, z = refs
            part = self.memory["row"].at[stage, :, pl.ds(0, self.how.half)]
            plgpu.wgmma(value, weights, part)
            after = self.stage(tile + 1)
            plgpu.barrier_wait(self.ready.at[after])
            keys = self.memory["row"].at[after].transpose((1, 0))
            plgpu.wgmma(z, self.memory["q"].at[0], keys)
            plgpu.wgmma_wait(1)
            plgpu.barrier_arrive(self.consumed.at[stage])

        shrunk = value * by_query(shrink, self.how.half)
        nothing = _filled(0.0, (QUERIES, TILE))
        return pl.run_state(both)([plgpu.ACC.init(shrunk), plgpu.ACC.init(nothing)])

    def logits_of(self, z, stage, q_at):
        """[queries, slots] of a tile, in units of log 2; LOWEST where not live."""
        how, memory = self.how, self.memory
        if how.soft_cap is None:
            z = z * (how.scale * LOG2E)
        else:  # tanh x = 1 - 2 / (1 + exp 2x)
            grown = jnp.exp2(z * (2 * LOG2E * how.scale / how.soft_cap))
            cap = how.soft_cap * LOG2E
            z = cap - 2 * cap / (grown + 1.0)
        if how.has_bias:
            z = z + by_slot(load(memory["factors"].at[stage], OF_SLOTS) * LOG2E)
        at_k = load(memory["places"].at[stage], OF_SLOTS)
        return jnp.where(seen(at_k, q_at, how.window, by_slot), z, LOWEST)

    def product(self, stage, weights, shrink, value, first: int):
        """value * shrink + p v, of half the values from `first` on."""

        def add(ref):
            part = self.memory["row"].at[stage, :, pl.ds(first, self.how.half)]
            plgpu.wgmma(ref, weights, part)

        shrunk = value * by_query(shrink, self.how.half)
        return pl.run_state(add)(plgpu.ACC.init(shrunk))

    def store(self, value, share, out, piece, first: int) -> None:
        """A half of a piece, straight from registers."""
        half = self.how.half
        out[piece, self.mine, pl.ds(first, half)] = value * by_query(share, half)


def by_slot(x):
    """A number a slot, for every query."""
    return lax.broadcast_in_dim(x, (QUERIES, TILE), [1])


def by_query(x, width: int):
    """A number a query, for each of so many."""
    return lax.broadcast_in_dim(x, (QUERIES, width), [0])


def _filled(value: float, size: tuple[int, ...], layout=MATRIX):
    return plgpu.layout_cast(jnp.full(size, value, jnp.float32), layout)
