"""Cycles that column_scores' TPU kernel takes, by the compiler's own schedule.

    python -m benchmarks.tpu_schedule_columns

As benchmarks/tpu_schedule.py: compiled ahead of time, nothing is run. For each
generation and pass the bundles (one a cycle) of one head's tile of queries by keys, not
masked and masked, and the cycles that a core's matrix units take for its products at
their peak: queries x keys x head_dim multiplications, where a head_dim that does not
fill a unit takes as long as one that does. One layer of 32 query and 8 kv heads in
bfloat16: all of 4096 queries, or the last 32 of 32768 tokens (`--few`). What each step
takes besides, heads put apart and copies, is not counted.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tpu_schedule import (
    BACK,
    BUNDLE,
    CHIPS,
    DELAY,
    dumping,
    one_chip,
)

N, K = 32, 8
WIDE = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256}  # of a core's UNITS
UNITS = 4
PASSES = "rows", "columns"


def main() -> None:
    options = parse()
    if options.compile:
        compile_for(options.compile, options.head_dim, options.few)
        return
    print("| generation | pass | tile | bundles | masked | matrix units | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in CHIPS:
        tile, found = schedule(name, options)
        wide = WIDE[name]
        deep = -(-options.head_dim // wide) * wide
        cycles = tile[0] * tile[1] * deep / (UNITS * wide**2)
        for one_pass, (whole, masked) in found.items():
            print(
                f"| {name} | {one_pass} | {tile[0]} x {tile[1]} | {whole} | {masked} "
                f"| {cycles:.0f} | {whole / cycles:.2f} |"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head-dim", type=int, default=128, choices=(128, 256))
    parser.add_argument("--few", action="store_true", help="the last 32 queries")
    parser.add_argument("--compile", choices=CHIPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def schedule(generation: str, options) -> tuple[list[int], dict[str, list[int]]]:
    """Queries and keys of a tile, and of each pass the bundles, not masked first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tpu_schedule_columns"]
        command += ["--compile", generation, "--head-dim", str(options.head_dim)]
        done = subprocess.run(
            command + ["--few"] * options.few,
            env=dumping(folder),
            check=True,
            stdout=subprocess.PIPE,
        )
        found = {}
        for name in PASSES:
            dumps = Path(folder).glob(f"*column_scores_{name}*-final_bundles.txt")
            (dump,) = (x for x in dumps if "analysis" not in x.name)
            found[name] = product_loops(dump.read_text())
        return json.loads(done.stdout), found


def product_loops(text: str) -> list[int]:
    """Bundles of each innermost loop that multiplies: a tile of one head."""
    lines = [line for line in text.splitlines() if BUNDLE.match(line)]
    found, begin = [], None
    for i, line in enumerate(lines):
        if " LB: " in line:
            begin = i
        if begin is not None and BACK.search(line):
            body, begin = lines[begin : i + 1], None
            if any(re.search("vmatmul", x) for x in body):
                found.append(len(body) + DELAY)
    return found


def compile_for(generation: str, head_dim: int, few: bool) -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pallas_kernels.column_scores import mosaic_tpu

    mesh = one_chip(generation)
    T, S = (32, 32768) if few else (4096, 4096)

    def shape(dtype, *sizes):
        placed = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=placed)

    def score(q, k, q_position, k_position):
        how = dict(scale=head_dim**-0.5, reduce="sum", group="mean")
        return mosaic_tpu.column_scores(q, k, q_position, k_position, **how)

    q, k = (shape(jnp.bfloat16, 1, *sizes, head_dim) for sizes in ((T, N), (S, K)))
    with jax.set_mesh(mesh):
        positions = shape(jnp.int32, 1, T), shape(jnp.int32, 1, S)
        jax.jit(score).lower(q, k, *positions).compile()
        asked = shape(jnp.bfloat16, 1, T * N // K, K, head_dim) if few else q
        tile = mosaic_tpu.fitted(mosaic_tpu.sizes(), asked, k)
    print(json.dumps([tile.queries, tile.keys]))


if __name__ == "__main__":
    main()
