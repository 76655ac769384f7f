"""Cycles that ragged_decode's TPU kernel takes, by the compiler's own schedule.

    python -m benchmarks.tpu_schedule

Compiles the kernel ahead of time for each generation, counts the bundles (one a cycle)
of the loop that starts copies and computes, and holds them against the cycles in which
a core's share of HBM delivers the same keys and values. Prints a table; libtpu must be
installed (`pip install -e '.[test,tpu]'`), and no TPU is needed. Nothing is run: that
copies and products really overlap is not measured here.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pallas_kernels.layout import row_lanes
from tests.tpu_generations import GENERATIONS

SLOTS = 1024  # that bundles and cycles are given for
BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+\w*\s*:")
BACK = re.compile(r"sbr\.rel \(!?%\w+\)")
DELAY = 4  # bundles after a branch that still run


@dataclass(frozen=True)
class Chip:
    """HBM in bytes a second (Google's pages of the generation), cores, and clock.

    The clock is the peak rate of that page over what a core's matrix units do a cycle:
    v4 275e12 / (2 x 4 x 128^2 x 2), v5e 197e12 / (4 x 128^2 x 2), v5p 459e12 / (2 x 4 x
    128^2 x 2), v6e 918e12 / (4 x 256^2 x 2). Those pages give v6e 2 units or
    4, at different times; with 2 its clock and HBM's cycles would be twice as many.
    """

    hbm: float
    cores: int
    hertz: float

    def cycles(self, size: int) -> float:
        """Until a core's share of HBM has delivered so many bytes."""
        return size / (self.hbm / self.cores) * self.hertz


CHIPS = {
    "v4": Chip(1228e9, 2, 1.05e9),
    "v5e": Chip(819e9, 1, 1.5e9),
    "v5p": Chip(2765e9, 2, 1.75e9),
    "v6e": Chip(1640e9, 1, 1.75e9),
}


def main() -> None:
    options = parse()
    if options.compile:
        compile_for(options.compile, options.page, options.head_dim)
        return
    size = SLOTS * row_lanes(options.head_dim) * 2  # keys and values in bfloat16
    print("| generation | bundles | HBM cycles | ratio |\n|---|---|---|---|")
    for name, chip in CHIPS.items():
        found = bundles(name, options.page, options.head_dim)
        cycles = chip.cycles(size)
        print(f"| {name} | {found:.0f} | {cycles:.0f} | {found / cycles:.2f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=int, default=128, help="slots of a page")
    parser.add_argument("--head-dim", type=int, default=128, choices=(64, 96, 128, 256))
    parser.add_argument("--compile", choices=CHIPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def bundles(generation: str, page: int, head_dim: int) -> float:
    """Of SLOTS slots, from a process that dumps what it schedules."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = ("--page", str(page), "--head-dim", str(head_dim))
        command = (sys.executable, "-m", "benchmarks.tpu_schedule")
        done = subprocess.run(
            [*command, "--compile", generation, *sizes],
            env=dumping(folder),
            check=True,
            stdout=subprocess.PIPE,
        )
        slots = json.loads(done.stdout)["slots of a step"]
        (dump,) = Path(folder).glob("*ragged_decode*-final_bundles.txt")
        return inner_loop(dump.read_text()) * SLOTS / slots


def dumping(folder: str) -> dict[str, str]:
    """The environment of a process that compiles for TPUs and dumps it to a folder."""
    return os.environ | {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
    }


def one_chip(generation: str):
    """A mesh of one chip."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    chip = GENERATIONS[generation]
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=chip.topology, chip_config_name=chip.chip
    )
    one = np.array(topology.devices)[:1].reshape(1, 1)
    return Mesh(one, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def inner_loop(text: str) -> int:
    """Bundles of the one loop that both starts copies and multiplies."""
    lines = [line for line in text.splitlines() if BUNDLE.match(line)]
    found, begin = [], None
    for i, line in enumerate(lines):
        if " LB: " in line:
            begin = i
        if begin is not None and BACK.search(line):
            body, begin = lines[begin : i + 1], None
            if all(any(op in x for x in body) for op in ("dma.hbm_to_vmem", "vmatmul")):
                found.append(len(body) + DELAY)
    (size,) = found
    return size


def compile_for(generation: str, page: int, head_dim: int) -> None:
    """Batch 8 of llama-3.1-8b's heads on one chip, a tenth of 32768 tokens kept."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pallas_kernels import dispatch
    from pallas_kernels.layout import entry_shape
    from pallas_kernels.ragged_decode import mosaic_tpu

    mesh = one_chip(generation)

    def shape(dtype, *sizes):
        placed = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=placed)

    B, J, R, G, M = 8, 1, 8, 4, 3584 // page
    pool = (B, J, R * M)
    with jax.set_mesh(mesh), dispatch.compile_for("tpu"):
        entry = entry_shape(jnp.bfloat16, *pool, page, head_dim)
        tiles = mosaic_tpu.sizes()
        decode = partial(mosaic_tpu.ragged_decode, scale=head_dim**-0.5, tiles=tiles)
        jax.jit(decode).lower(
            shape(jnp.bfloat16, B, J, R, 1, G, head_dim),
            jax.tree.map(lambda x: shape(x.dtype, *x.shape), entry),
            shape(jnp.int32, *pool),
            shape(jnp.int32, *pool, page),
            shape(jnp.int32, B, 1),
            shape(jnp.int32, B, J, R, M),
            shape(jnp.int32, B, J, R),
        ).compile()
    page_bytes = page * row_lanes(head_dim) * 2
    slots = max(1, tiles.step // page_bytes) * page
    print(json.dumps({"slots of a step": slots}))


if __name__ == "__main__":
    main()
