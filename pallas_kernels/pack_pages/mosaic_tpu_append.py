"""append_entries on TPUs, in place.

What a TPU writes into HBM is whole tiles: a slot is read with the 15 around it (7 in
float32), changed and written back. Each row of a step has an open page of its own, so
that all are under way at one time: every read of a block of rows is started, then all
are awaited, changed and sent back, and at last these are awaited. A slot's position
goes the same way, with those of its page. Slots of one row that lie in one tile are
written in one visit.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import AnyEntry

MOST = 8  # new tokens; more are no step of a decode loop, and XLA's scatter is as good
PLACES = 2**16  # of one call: they lie in SMEM
BLOCK = 2**21  # bytes of the tiles that a block of rows visits
TILE = {2: 16, 4: 8}  # slots of a tile, by the bytes of a number


def append_entries(
    entry: AnyEntry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"] | None,
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
    *,
    interpret: Any = False,
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """As `xla.append_entries`, of at most 8 tokens; no two rows write to one page.

    Raises ValueError as `check` does.
    """
    check(entry, position, k)
    B, J, pages, P = position.shape
    T, R, rows = k.shape[1], k.shape[3], page.size // k.shape[1]
    leaves, layout = jax.tree.flatten(entry)
    tile = TILE[leaves[0].dtype.itemsize]
    pool = [x.reshape(-1, tile, x.shape[-1]) for x in leaves]
    pool.append(position.reshape(-1, 1, P))
    bytes_of_row = sum(4 * T * x[0].size for x in pool)
    block = max(1, min(rows, BLOCK // bytes_of_row))
    spare = -rows % block

    def by_row(x):
        """[rows, T, W]; in float32, because a number of 16 bits is half a word."""
        x = x.astype(leaves[0].dtype).astype(jnp.float32)
        x = x.transpose(0, 2, 3, 1, 4).reshape(rows, T, -1)
        return jnp.pad(x, ((0, spare), (0, 0), (0, 0)))

    new = [by_row(x) for x in jax.tree.leaves(entry.like(k, v))]
    of_pool = jnp.arange(B * J, dtype=jnp.int32).reshape(B, J, 1, 1) * pages
    inside = (page >= 0) & (page < pages) & (slot >= 0) & (slot < P)
    place = jnp.where(inside, (of_pool + page) * P + slot, -1).reshape(-1)
    place = jnp.pad(place, (0, spare * T), constant_values=-1)
    anywhere = [pl.BlockSpec(memory_space=pl.ANY)] * len(pool)
    written = pl.pallas_call(
        partial(_kernel, slots=(*[tile] * len(leaves), P), rows_of_batch=J * R),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in pool],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=((rows + spare) // block,),
            in_specs=[*(_of_block(x, block) for x in new), *anywhere],
            out_specs=anywhere,
            scratch_shapes=[
                [pltpu.VMEM((block, T, *x.shape[1:]), x.dtype) for x in pool],
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        input_output_aliases={2 + len(new) + i: i for i in range(len(pool))},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), disable_bounds_checks=True
        ),
        interpret=interpret,
        name="append_entries",
    )(place, new_position.reshape(-1), *new, *pool)
    *tiles, stored = written
    tiles = [x.reshape(was.shape) for x, was in zip(tiles, leaves, strict=True)]
    return jax.tree.unflatten(layout, tiles), stored.reshape(position.shape)


def check(entry: AnyEntry, position: Array, k: Array) -> None:
    """Says what this kernel cannot take, and what to use.

    Raises:
      ValueError: the dtype, the page size, or the number of tokens or rows.
    """
    (B, T, J, R, _), P, dtype = k.shape, position.shape[-1], entry.k.dtype
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            "The Mosaic TPU kernel appends entries of bfloat16 or float32, not "
            f"{dtype}. Use xla.append_entries."
        )
    if P % TILE[dtype.itemsize]:
        raise ValueError(
            f"Pages of {P} slots of {dtype} are no whole number of tiles of "
            f"{TILE[dtype.itemsize]}. Use xla.append_entries."
        )
    if T > MOST:
        raise ValueError(
            f"{T} tokens at once are more than {MOST}. Use xla.append_entries."
        )
    if B * T * J * R > PLACES:
        raise ValueError(
            f"{B * T * J * R} entries are more than {PLACES}, all whose places a TPU "
            "core holds. Use xla.append_entries."
        )


def _of_block(x, block: int) -> pl.BlockSpec:
    """The part of a block of rows, in VMEM."""
    return pl.BlockSpec((block, *x.shape[1:]), lambda i, *_: (i, 0, 0))


def _kernel(place_ref, new_position_ref, *refs, slots, rows_of_batch: int):
    arrays = len(slots)
    new_refs, (bufs, done) = refs[: arrays - 1], refs[-2:]
    pool_refs = refs[-2 - arrays : -2]
    block, T = bufs[0].shape[:2]
    first_row = pl.program_id(0) * block

    def visits(i, visit):
        """visit(array, token, tile, slots of the tile): the first token of each."""
        places = [place_ref[(first_row + i) * T + t] for t in range(T)]
        for x, size in enumerate(slots):
            tiles = [jnp.where(p < 0, -1, jax.lax.div(p, size)) for p in places]
            for t, tile in enumerate(tiles):
                here = tile >= 0
                for earlier in tiles[:t]:
                    here &= earlier != tile
                at = [
                    jnp.where(tiles[u] == tile, places[u] - tile * size, -1)
                    for u in range(t, T)
                ]
                pl.when(here)(partial(visit, x, t, tile, at))

    def read(i, x, t, tile, at):
        return pltpu.make_async_copy(
            pool_refs[x].at[tile], bufs[x].at[i, t], done.at[0]
        )

    def write(i, x, t, tile, at):
        return pltpu.make_async_copy(
            bufs[x].at[i, t], pool_refs[x].at[tile], done.at[1]
        )

    def change(i, x, t, tile, at):
        is_position = x == arrays - 1
        changed = bufs[x][i, t]
        slot = jax.lax.broadcasted_iota(jnp.int32, changed.shape, int(is_position))
        wide = changed.astype(jnp.int32 if is_position else jnp.float32)
        for u, here in enumerate(at, t):
            if is_position:
                batch = jax.lax.div(first_row + i, rows_of_batch)
                new = new_position_ref[batch * T + u]
            else:
                new = new_refs[x][i, pl.ds(u, 1)]
            wide = jnp.where(slot == here, new, wide)
        bufs[x][i, t] = wide.astype(changed.dtype)
        write(i, x, t, tile, at).start()

    def each_row(do):
        jax.lax.fori_loop(0, block, lambda i, _: visits(i, partial(do, i)), None)

    each_row(lambda *visit: read(*visit).start())
    each_row(lambda *visit: read(*visit).wait())
    each_row(change)
    each_row(lambda *visit: write(*visit).wait())
