"""append_entries on every platform: the implementation chosen."""

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform, fits
from pallas_kernels.layout import Entry
from pallas_kernels.pack_pages import xla
from pallas_kernels.sharded import over_mesh

KINDS = dict.fromkeys(("entry", "position", "page", "slot"), "BJ") | {
    "k": "B-J",
    "v": "B-J",
    "new_position": "B",
}


def append_entries(
    entry: Entry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"],
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
) -> tuple[Entry, Int[Array, "B J pages P"]]:
    """Writes entry t of row r at (page, slot); in place when the pool is donated.

    A page outside the pool drops the entry. Returns (entry, position). On Hopper a few
    16-bit entries a row go through Mosaic GPU (`mosaic_gpu.check` says which), all else
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

    def through_xla(arrays):
        return xla.append_entries(**arrays)

    def through_mosaic_gpu(arrays):
        return over_mesh(lambda arrays: _mosaic_gpu(**arrays), arrays, KINDS)

    hopper = fits("sm90", "pallas_kernels.pack_pages.mosaic_gpu", entry, k)
    kernel = through_mosaic_gpu if hopper else None
    return by_platform(through_xla, sm90=kernel)(arrays)


@jax.jit
def _mosaic_gpu(**arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_gpu

    return mosaic_gpu.append_entries(**arrays)
