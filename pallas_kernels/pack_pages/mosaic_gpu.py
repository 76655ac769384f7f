"""pack_pages and append_entries on Hopper through Pallas' Mosaic GPU backend.

pack_pages: one warpgroup for 64 slots of a page. Each slot's key and value are copied
from their token to shared memory, all at once, and the 64 from there to the page.

append_entries, in place: one warpgroup a row. Its new keys and values pass through
shared memory into the slots of the pool, whose arrays are references that the kernel
writes. XLA's scatters take three programs for that, and three times as long.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry

ALIGNED = 64  # numbers: copies begin at multiples of 128 bytes of shared memory
MOST = 8  # new tokens; more are no step of a decode loop, and XLA's scatter is as good
TILE = 64  # slots that one block packs


def pack_pages(
    k: Float[Array, "B S J R H"],
    v: Float[Array, "B S J R H"],
    token_position: Int[Array, "B S"],
    owner: Int[Array, "B J pages"],
    source: Int[Array, "B J pages P"],
    *,
    interpret=None,
) -> tuple[Entry, Int[Array, "B J pages P"]]:
    """As `xla.pack_pages`, of 16-bit entries; an empty slot holds some token's entry.

    Raises:
      ValueError: the dtype, head_dim or page size is not one that this kernel takes.
    """
    check_pack(k, source)
    B, J, pages, P = source.shape
    H, dtype = k.shape[-1], k.dtype
    tiles = P // TILE

    def body(k, v, owner, source, pool_k, pool_v, *scratch):
        new_k, new_v, come = scratch
        b, j, tile = (lax.axis_index(name) for name in ("row", "group", "tile"))
        page, first = lax.div(tile, tiles), lax.rem(tile, tiles) * TILE
        row = jnp.maximum(owner[b, j, page], 0)

        def fetch(slot, _):
            token = jnp.maximum(source[b, j, page, first + slot], 0)
            for tokens, new in ((k, new_k), (v, new_v)):
                here = new.at[slot, pl.ds(0, H)]
                plgpu.copy_gmem_to_smem(tokens.at[b, token, j, row], here, come)
            return _

        def store(slot, _):
            for new, pool in ((new_k, pool_k), (new_v, pool_v)):
                there = pool.at[b, j, page, first + slot]
                plgpu.copy_smem_to_gmem(new.at[slot, pl.ds(0, H)], there)
            return _

        lax.fori_loop(0, TILE, fetch, None, unroll=8)
        plgpu.barrier_wait(come)
        if H % ALIGNED:
            lax.fori_loop(0, TILE, store, None, unroll=8)
        else:
            slots = pl.ds(first, TILE)
            plgpu.copy_smem_to_gmem(new_k, pool_k.at[b, j, page, slots])
            plgpu.copy_smem_to_gmem(new_v, pool_v.at[b, j, page, slots])
        plgpu.wait_smem_to_gmem(0)

    shared = plgpu.SMEM((TILE, -(-H // ALIGNED) * ALIGNED), dtype)
    kernel = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct((B, J, pages, P, H), dtype)] * 2,
        scratch_types=[shared, shared, plgpu.Barrier(num_arrivals=2 * TILE)],
        grid=(B, J, pages * tiles),
        grid_names=("row", "group", "tile"),
        interpret=interpret,
    )
    at = jnp.maximum(source, 0).reshape(B, -1)
    position = jnp.take_along_axis(token_position, at, axis=1).reshape(source.shape)
    empty = (source < 0) | (owner < 0)[..., None]
    return Entry(*kernel(k, v, owner, source)), jnp.where(empty, -1, position)


def append_entries(
    entry: Entry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"],
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
    *,
    interpret=None,
) -> tuple[Entry, Int[Array, "B J pages P"]]:
    """As `xla.append_entries`, of at most 8 tokens and 16-bit entries.

    Raises:
      ValueError: the dtype, head_dim or number of tokens is not one that this kernel
        takes.
    """
    check(entry, k)
    B, J, pages, _ = position.shape
    T, R, H = k.shape[1], *k.shape[3:]
    dtype = entry.k.dtype

    def body(k, v, new_position, page, slot, pool_k, pool_v, pool_position, *scratch):
        new_k, new_v, come = scratch
        b, j, r = (lax.axis_index(name) for name in ("row", "group", "head"))
        new_k, new_v = (x.at[:, pl.ds(0, H)] for x in (new_k, new_v))
        for t in range(T):
            plgpu.copy_gmem_to_smem(k.at[b, t, j, r], new_k.at[t], come)
            plgpu.copy_gmem_to_smem(v.at[b, t, j, r], new_v.at[t], come)
        places = [(page[b, j, r, t], slot[b, j, r, t]) for t in range(T)]
        plgpu.barrier_wait(come)
        for t, (p, s) in enumerate(places):

            @pl.when((p >= 0) & (p < pages))
            def _(t=t, p=p, s=s):
                plgpu.copy_smem_to_gmem(new_k.at[t], pool_k.at[b, j, p, s])
                plgpu.copy_smem_to_gmem(new_v.at[t], pool_v.at[b, j, p, s])
                pool_position[b, j, p, s] = new_position[b, t]

        plgpu.wait_smem_to_gmem(0)

    kernel = plgpu.kernel(
        body,
        out_type=(),
        scratch_types=[
            plgpu.SMEM((T, -(-H // ALIGNED) * ALIGNED), dtype),
            plgpu.SMEM((T, -(-H // ALIGNED) * ALIGNED), dtype),
            plgpu.Barrier(num_arrivals=2 * T),
        ],
        grid=(B, J, R),
        grid_names=("row", "group", "head"),
        interpret=interpret,
    )
    pool = [jax.new_ref(x) for x in (*entry, position)]
    kernel(k.astype(dtype), v.astype(dtype), new_position, page, slot, *pool)
    new_k, new_v, position = (jax.freeze(x) for x in pool)
    return Entry(new_k, new_v), position


def check_pack(k: Array, source: Array) -> None:
    """Says what `pack_pages` cannot take, and what to use."""
    use = "Use xla.pack_pages."
    _check_entries(k.dtype, k.shape[-1], use)
    if source.shape[-1] % TILE:
        raise ValueError(
            f"Pages of {source.shape[-1]} slots are no multiple of {TILE}. {use}"
        )


def check(entry: Entry, k: Array) -> None:
    """Says what `append_entries` cannot take, and what to use."""
    use = "Use xla.append_entries."
    _check_entries(entry.k.dtype, k.shape[-1], use)
    if k.shape[1] > MOST:
        raise ValueError(f"{k.shape[1]} tokens at once are more than {MOST}. {use}")


def _check_entries(dtype, H: int, use: str) -> None:
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"Mosaic GPU stores 16-bit entries here, not {dtype}. {use}")
    if H % 8:
        raise ValueError(
            f"head_dim {H} is no multiple of 8, so that an entry is no whole number of "
            f"16 bytes. {use}"
        )
