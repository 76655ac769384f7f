"""pack_pages on Hopper through Pallas' Mosaic GPU backend.

One warpgroup for 64 slots of a page: each slot's key and value, or its latent, come
from their token to shared memory, all at once, and the 64 go from there to the page.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.hopper import ALIGNED, COPIED, check_entries, in_copies
from pallas_kernels.layout import AnyEntry, stored

TILE = 64  # slots that one block packs


def pack_pages(
    k: Float[Array, "B S J R H"],
    v: Float[Array, "B S J R H"] | None,
    token_position: Int[Array, "B S"],
    owner: Int[Array, "B J pages"],
    source: Int[Array, "B J pages P"],
    *,
    interpret=None,
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """As `xla.pack_pages`, of 16-bit entries; an empty slot holds some token's entry.

    Raises:
      ValueError: the dtype, head_dim or page size is not one that this kernel takes.
    """
    check(k, source)
    B, J, pages, P = source.shape
    H, dtype = k.shape[-1], k.dtype
    tiles = P // TILE
    tokens, layout = jax.tree.flatten(stored(k, v))
    arrays, parts = len(tokens), in_copies(H)
    copies = arrays * TILE * len(parts)

    def body(*refs):
        token_refs, refs = refs[:arrays], refs[arrays:]
        (owner, source), refs = refs[:2], refs[2:]
        pool_refs, (*new_refs, tokens_here, known, come) = refs[:arrays], refs[arrays:]
        b, j, tile = (lax.axis_index(name) for name in ("row", "group", "tile"))
        page, first = lax.div(tile, tiles), lax.rem(tile, tiles) * TILE
        # All at once: each read from memory would wait for the one before.
        ours = source.at[b, j, page, pl.ds(first, TILE)]
        plgpu.copy_gmem_to_smem(ours, tokens_here, known)
        row = jnp.maximum(owner[b, j, page], 0)
        plgpu.barrier_wait(known)

        def fetch(slot, _):
            token = jnp.maximum(tokens_here[slot], 0)
            for x, new in zip(token_refs, new_refs, strict=True):
                for part in parts:
                    there, here = x.at[b, token, j, row, part], new.at[slot, part]
                    plgpu.copy_gmem_to_smem(there, here, come)
            return _

        def store(slot, _):
            for new, pool in zip(new_refs, pool_refs, strict=True):
                for part in parts:
                    there = pool.at[b, j, page, first + slot, part]
                    plgpu.copy_smem_to_gmem(new.at[slot, part], there)
            return _

        lax.fori_loop(0, TILE, fetch, None, unroll=8)
        plgpu.barrier_wait(come)
        if H % ALIGNED or H > COPIED:
            lax.fori_loop(0, TILE, store, None, unroll=8)
        else:
            slots = pl.ds(first, TILE)
            for new, pool in zip(new_refs, pool_refs, strict=True):
                plgpu.copy_smem_to_gmem(new, pool.at[b, j, page, slots])
        plgpu.wait_smem_to_gmem(0)

    shared = plgpu.SMEM((TILE, -(-H // ALIGNED) * ALIGNED), dtype)
    kernel = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct((B, J, pages, P, H), dtype)] * arrays,
        scratch_types=[
            *[shared] * arrays,
            plgpu.SMEM((TILE,), jnp.int32),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=copies),
        ],
        grid=(B, J, pages * tiles),
        grid_names=("row", "group", "tile"),
        interpret=interpret,
    )
    at = jnp.maximum(source, 0).reshape(B, -1)
    position = jnp.take_along_axis(token_position, at, axis=1).reshape(source.shape)
    empty = (source < 0) | (owner < 0)[..., None]
    entry = jax.tree.unflatten(layout, kernel(*tokens, owner, source))
    return entry, jnp.where(empty, -1, position)


def check(k: Array, source: Array) -> None:
    """Says what this kernel cannot take, and what to use."""
    use = "Use xla.pack_pages."
    check_entries(k.dtype, k.shape[-1], use)
    if source.shape[-1] % TILE:
        raise ValueError(
            f"Pages of {source.shape[-1]} slots are no multiple of {TILE}. {use}"
        )
