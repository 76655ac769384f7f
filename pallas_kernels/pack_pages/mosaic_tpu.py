"""pack_pages on TPUs: every slot's token copied from where it lies.

A token's heads lie in one tile, and less than a tile cannot be copied: a slot's key is
read with those of the token's other heads (8 at most, where they are eights), and its
owner's is taken out on the chip. While that is done for some slots, the copies of the
next ones are under way; XLA's gather starts as many, and waits for them. Sources may be
in any order, and best first is the order of a pool.

Positions, 4 bytes a slot, are XLA's gather.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import LANES, AnyEntry, stored

SLOTS = 128  # of a block, where that divides the page
HEADS = 8  # of a tile
MOST = 2**17  # blocks of one call: their heads lie in SMEM
UNROLLED = 16  # copies started in one turn of a loop


def pack_pages(
    k: Float[Array, "B S J R H"],
    v: Float[Array, "B S J R H"] | None,
    token_position: Int[Array, "B S"],
    owner: Int[Array, "B J pages"],
    source: Int[Array, "B J pages P"],
    *,
    interpret: Any = False,
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """As `xla.pack_pages`. Raises ValueError as `check` does."""
    check(k, source)
    B, S, J, R, _ = k.shape
    slots = _slots_of_block(source)
    heads = HEADS if R % HEADS == 0 else R
    tokens, layout = jax.tree.flatten(stored(k, v))
    tokens = [x.reshape(-1, heads, x.shape[-1]) for x in tokens]
    b = jnp.arange(B, dtype=jnp.int32)[:, None, None, None]
    j = jnp.arange(J, dtype=jnp.int32)[None, :, None, None]
    row = jnp.maximum(owner, 0)[..., None]
    token = (b * S + jnp.maximum(source, 0)) * J + j
    tile = (token * (R // heads) + row // heads).reshape(-1, 1, slots)
    head = jnp.broadcast_to(row % heads, (*owner.shape, source.shape[-1] // slots))
    packed = _call(head.reshape(-1), tile, tokens, interpret)
    packed = [x.reshape(*source.shape, -1) for x in packed]
    at = jnp.maximum(source, 0).reshape(B, -1)
    position = jnp.take_along_axis(token_position, at, axis=1).reshape(source.shape)
    position = jnp.where((source < 0) | (owner < 0)[..., None], -1, position)
    return jax.tree.unflatten(layout, packed), position


def check(k: Array, source: Array) -> None:
    """Says what this kernel cannot take, and what to use.

    Raises:
      ValueError: the dtype, or the number of pages.
    """
    if k.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            "The Mosaic TPU kernel packs entries of bfloat16 or float32, not "
            f"{k.dtype}. Use xla.pack_pages."
        )
    blocks = source.size // _slots_of_block(source)
    if blocks > MOST:
        raise ValueError(
            f"Pages of {source.size} slots are {blocks} blocks, more than {MOST}, all "
            "whose heads a TPU core holds. Use xla.pack_pages."
        )


def _slots_of_block(source: Array) -> int:
    P = source.shape[-1]
    return SLOTS if P % SLOTS == 0 else P


def _call(head, tile, tokens, interpret):
    """[blocks, slots, W] of each array of tokens [tiles, heads, W]."""
    blocks, _, slots = tile.shape
    cores = 2 - blocks % 2  # of a chip, at most; one takes both halves by turns
    steps = blocks // cores

    def block(core, step, *_):
        return core * steps + step, 0, 0

    def next_block(core, step, *_):
        return core * steps + jnp.minimum(step + 1, steps - 1), 0, 0

    def tiles_of(index_map):
        return pl.BlockSpec((1, 1, slots), index_map, memory_space=pltpu.SMEM)

    packed = [
        jax.ShapeDtypeStruct((blocks, slots, x.shape[-1]), x.dtype) for x in tokens
    ]
    return pl.pallas_call(
        partial(_kernel, arrays=len(tokens)),
        out_shape=packed,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cores, steps),
            in_specs=[
                tiles_of(block),
                tiles_of(next_block),
                *[pl.BlockSpec(memory_space=pl.ANY)] * len(tokens),
            ],
            out_specs=[pl.BlockSpec((1, *x.shape[1:]), block) for x in packed],
            scratch_shapes=[
                [pltpu.VMEM((2, slots, *x.shape[1:]), x.dtype) for x in tokens],
                pltpu.VMEM((slots * tokens[0].shape[1], LANES), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), disable_bounds_checks=True
        ),
        interpret=interpret,
        name="pack_pages",
    )(head, tile, tile, *tokens)


def _kernel(head_ref, tile_ref, next_tile_ref, *refs, arrays: int):
    token_refs, packed_refs = refs[:arrays], refs[arrays : 2 * arrays]
    bufs, rows_ref, arrived = refs[2 * arrays :]
    step, steps = pl.program_id(1), pl.num_programs(1)
    half = jax.lax.rem(step, 2)

    def start(tiles, half):
        def slot(s, _):
            for tokens, buf in zip(token_refs, bufs, strict=True):
                source = tokens.at[tiles[0, 0, s]]
                to = buf.at[half, s]
                pltpu.make_async_copy(source, to, arrived.at[half]).start()
            return _

        slots = tile_ref.shape[-1]
        jax.lax.fori_loop(0, slots, slot, None, unroll=min(slots, UNROLLED))

    @pl.when(step == 0)
    def _():
        start(tile_ref, half)

    @pl.when(step + 1 < steps)
    def _():
        start(next_tile_ref, 1 - half)

    for buf in bufs:
        to = buf.at[half]
        pltpu.make_async_copy(to, to, arrived.at[half]).wait()
    head = head_ref[pl.program_id(0) * steps + step]
    for buf, packed in zip(bufs, packed_refs, strict=True):
        _, slots, heads, W = buf.shape
        for lanes in (pl.ds(lane, LANES) for lane in range(0, W, LANES)):
            rows = buf[half, :, :, lanes].astype(jnp.float32)
            rows_ref[...] = rows.reshape(slots * heads, LANES)
            mine = rows_ref[pl.ds(head, slots, stride=heads)]
            packed[0, :, lanes] = mine.astype(packed.dtype)
