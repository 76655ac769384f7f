"""pack_pages and append_entries on every platform: the implementation chosen."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform, fits
from pallas_kernels.layout import AnyEntry
from pallas_kernels.pack_pages import xla
from pallas_kernels.sharded import over_mesh

PACK_KINDS = {"k": "B-J", "v": "B-J", "token_position": "B"} | dict.fromkeys(
    ("owner", "source"), "BJ"
)
APPEND_KINDS = dict.fromkeys(("entry", "position", "page", "slot"), "BJ") | {
    "k": "B-J",
    "v": "B-J",
    "new_position": "B",
}


def pack_pages(
    k: Float[Array, "B S J R H"],
    v: Float[Array, "B S J R H"] | None,
    token_position: Int[Array, "B S"],
    owner: Int[Array, "B J pages"],
    source: Int[Array, "B J pages P"],
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """Gathers token source[..., s] of each page's owner into slot s.

    A source of -1, or a page of no owner, leaves the slot empty: position -1, entry
    unspecified (finite). Latents have no v. Returns (entry, position). On Hopper 16-bit
    entries go through Mosaic GPU (`mosaic_gpu.check` says which), on a TPU those of
    bfloat16 or float32 through Mosaic TPU (`mosaic_tpu.check`), and all else through
    XLA.
    """
    arrays = dict(k=k, v=v, token_position=token_position, owner=owner, source=source)
    hopper = fits("sm90", "pallas_kernels.pack_pages.mosaic_gpu", k, source)
    sm90 = _through(_pack_mosaic_gpu, PACK_KINDS) if hopper else None
    fits_tpu = fits("tpu", "pallas_kernels.pack_pages.mosaic_tpu", k, source)
    tpu = _through(_pack_mosaic_tpu, PACK_KINDS) if fits_tpu else None
    through_xla = partial(_call, xla.pack_pages)
    return by_platform(through_xla, sm90=sm90, tpu=tpu)(arrays)


def append_entries(
    entry: AnyEntry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"] | None,
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """Writes entry t of row r at (page, slot); in place when the pool is donated.

    A page outside the pool drops the entry; no two rows write to one page. Latents
    have no v. Returns (entry, position). On Hopper a few 16-bit entries a row go
    through Mosaic GPU (`mosaic_gpu_append.check` says which), on a TPU as few of
    bfloat16 or float32 through Mosaic TPU (`mosaic_tpu_append.check`), and all else
    through XLA.
    """
    arrays = dict(
        entry=entry,
        position=position,
        k=k,
        v=v,
        new_position=new_position,
        page=page,
        slot=slot,
    )

    module = "pallas_kernels.pack_pages.mosaic_gpu_append"
    hopper = fits("sm90", module, entry, k)
    sm90 = _through(_append_mosaic_gpu, APPEND_KINDS) if hopper else None
    module = "pallas_kernels.pack_pages.mosaic_tpu_append"
    fits_tpu = fits("tpu", module, entry, position, k)
    tpu = _through(_append_mosaic_tpu, APPEND_KINDS) if fits_tpu else None
    through_xla = partial(_call, xla.append_entries)
    return by_platform(through_xla, sm90=sm90, tpu=tpu)(arrays)


def _through(kernel, kinds):
    """Of the arrays by name, each device of a mesh on its own part."""
    return lambda arrays: over_mesh(partial(_call, kernel), arrays, kinds)


def _call(function, arrays):
    return function(**arrays)


@jax.jit
def _pack_mosaic_gpu(**arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_gpu

    return mosaic_gpu.pack_pages(**arrays)


@jax.jit
def _append_mosaic_gpu(**arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_gpu_append

    return mosaic_gpu_append.append_entries(**arrays)


@jax.jit
def _pack_mosaic_tpu(**arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_tpu

    return mosaic_tpu.pack_pages(**arrays)


@jax.jit
def _append_mosaic_tpu(**arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_tpu_append

    return mosaic_tpu_append.append_entries(**arrays)
