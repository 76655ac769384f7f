"""append_entries on every platform: the implementation chosen."""

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform, target
from pallas_kernels.layout import Entry
from pallas_kernels.pack_pages import xla


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
    kernel = _mosaic_gpu if _hopper_takes(entry, k) else None
    append = by_platform(xla.append_entries, sm90=kernel)
    return append(entry, position, k, v, new_position, page, slot)


def _hopper_takes(entry: Entry, k: Array) -> bool:
    """Whether the Mosaic GPU kernel is made for such arrays; asked on Hopper alone."""
    if target() != "sm90":
        return False
    from pallas_kernels.pack_pages import mosaic_gpu  # it is slow to import

    return mosaic_gpu.takes(entry, k)


@jax.jit
def _mosaic_gpu(*arrays):
    """Traced once for all layers of a model."""
    from pallas_kernels.pack_pages import mosaic_gpu

    return mosaic_gpu.append_entries(*arrays)
