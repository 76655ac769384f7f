"""TPU slices by name, as "v5e:16x16": their devices, and what a chip can do.

Figures are the maker's (cloud.google.com/tpu/docs, and its scaling book): dense bf16
FLOP/s, bytes of HBM a second, bytes a second over all of a chip's links one way. The
memory is what XLA says it has when a program needs more. The clock is what the FLOP/s
come of: 4 or 8 units of 128 x 128 (v6e: 256 x 256).
"""

import importlib.util
import os
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

ENVIRONMENT = {  # libtpu would look for its own machine
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclass(frozen=True)
class Chip:
    """A generation's chip; `cores` is how they show, by libtpu's name for it."""

    gibibytes: float  # of HBM, that XLA lets a program have
    flops: float  # a second, dense bf16
    read: float  # bytes a second from HBM
    links: float  # bytes a second over all links, one way
    clock: float  # cycles a second
    dimensions: int  # of a slice's grid
    cores: str = "default"

    @property
    def memory(self) -> int:
        """The same in bytes."""
        return int(self.gibibytes * 2**30)


CHIPS = {
    "v4": Chip(30.75, 275e12, 1.23e12, 6 * 45e9, 1.05e9, 3, "megacore"),
    "v5e": Chip(15.75, 197e12, 0.81e12, 4 * 45e9, 1.5e9, 2),
    "v5p": Chip(95.74, 459e12, 2.77e12, 6 * 90e9, 1.75e9, 3),
    "v6e": Chip(31.25, 918e12, 1.64e12, 4 * 90e9, 1.75e9, 2),
}


@dataclass(frozen=True)
class Topology:
    """A slice."""

    name: str
    grid: tuple[int, ...]
    chip: Chip

    @property
    def chips(self) -> int:
        """How many it has."""
        return prod(self.grid)


def topology(name: str) -> Topology:
    """The slice called `name`.

    Raises:
      ValueError: no such generation, or no slice of it has such a grid.
    """
    generation, _, grid = name.partition(":")
    if generation not in CHIPS:
        raise ValueError(
            f"topology {name!r} names no TPU generation that can be planned for; give "
            f"{', '.join(CHIPS)} and a grid, as v5e:16x16 or v5p:4x4x4."
        )
    chip = CHIPS[generation]
    sizes = tuple(int(x) for x in grid.split("x") if x.isdecimal())
    cubes = len(sizes) == 3 and all(size and size % 4 == 0 for size in sizes)
    there = grid in FLAT if chip.dimensions == 2 else grid in SMALL or cubes
    if not there or "x".join(map(str, sizes)) != grid:
        known = ", ".join(FLAT if chip.dimensions == 2 else SMALL)
        more = "" if chip.dimensions == 2 else ", or three multiples of 4, as 4x4x8"
        raise ValueError(
            f"topology {name!r}: no slice of {generation} is "
            f"{grid or 'without a grid'}; give {known}{more}."
        )
    return Topology(name, sizes, chip)


def devices(of: Topology) -> list[Any]:
    """The slice's devices, to compile for: no machine has them.

    Raises:
      ValueError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "Planning for TPUs compiles with libtpu, which is not installed; "
            "pip install 'jaxkv[tpu]' (no TPU is needed)."
        )
    from jax.experimental import topologies

    os.environ.update(ENVIRONMENT)  # JAX sets some of them where libtpu is installed
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=of.name, chip_config_name=of.chip.cores
        )
    except (RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        first = str(error).split("\n")[0]
        raise ValueError(f"libtpu knows no slice {of.name}: {first}") from None
    return list(found.devices)
