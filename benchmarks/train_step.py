"""A training step at full size: FLOP/s of the hardware's, tokens/s, memory as planned.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --mesh data=1 data=2 fsdp=2

Runs the steps of a config of `configs/train` on random tokens from a file, one mesh
after another, each on the first devices that it needs; the first mesh is the measure.
The run's rows are a device's: a step of two devices has twice the tokens.
Model FLOPs are those that the step needs, nothing computed twice; the peak is the
maker's. Planned memory is XLA's analysis of the compiled step, measured memory the most
that the device's allocator gave out. Each mesh runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import numpy as np

from jaxkv.mesh import axis_sizes, make_mesh, rows_over
from jaxkv.plan.training import plan_training
from jaxkv.train.config import Train, load
from jaxkv.train.data import TokenFiles
from jaxkv.train.feeding import Opening
from jaxkv.train.parts import begin, describe
from jaxkv.train.rows import Rows
from jaxkv.train.speed import memory_peak, peak_flops, step_flops
from jaxkv.train.step import first_state, make_step
from pallas_kernels.dispatch import target

WARM = 2  # steps before the clock starts


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measured(options, options.mesh[0])))
        return
    first = None
    print(f"{options.train}: {options.steps} steps after {WARM}")
    for mesh in options.mesh:
        again = [sys.executable, __file__, "--one", *given(options), "--mesh", mesh]
        ended = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(ended.stdout.splitlines()[-1])
        first = first or found
        print(line(mesh, found, first), flush=True)


def line(mesh: str, found: dict[str, float], first: dict[str, float]) -> str:
    """A mesh's figures, and its tokens a second as a multiple of the first mesh's."""
    share, ratio = found["share"], found["rate"] / first["rate"]
    planned, used = found["planned"] / 1e9, found["measured"] / 1e9
    return (
        f"  {mesh:16} {found['seconds'] * 1e3:8.1f} ms a step  "
        f"{found['rate']:9.0f} tokens/s  {ratio:.2f} of the first  "
        f"{share:.1%} of peak FLOP/s  planned {planned:.2f} GB a device, "
        f"measured {used:.2f} GB ({used / planned:.2f})  "
        f"compiled in {found['compiled']:.0f} s  loss {found['loss']:.4f}"
    )


def measured(options: argparse.Namespace, mesh: str) -> dict[str, float]:
    """Seconds, tokens/s, share of the peak, and bytes a device, of one mesh."""
    devices = jax.devices()[: prod(axis_sizes(mesh).values())]
    with tempfile.TemporaryDirectory() as folder:
        whole = load(options.train)
        config = changed(replace(whole, mesh=mesh), options, Path(folder), devices)
        return steps_of(config, devices, options.steps)


def steps_of(config: Train, devices: list[jax.Device], count: int) -> dict[str, float]:
    """The steps themselves, timed together after the first."""
    planned = plan_training(config, devices, None, target())
    on, parts = make_mesh(config.mesh, config.axis_types, devices), describe(config)
    _, stage = next(iter(config.curriculum()))
    with jax.set_mesh(on):
        trained, fixed = begin(parts, on)
        state = first_state(config, trained, on)
        del trained
        step = make_step(parts, on, 0, stage)
        rows = stage.feed.open(Opening(on, 0, None, parts.model.vocabulary, 0))
        for number, given in zip(range(WARM + count), rows, strict=False):
            if number == WARM:
                jax.block_until_ready(state)
                began = time.monotonic()
            state, counts = step(state, fixed, np.int32(number), given)
        jax.block_until_ready(state)
        seconds = (time.monotonic() - began) / count
    teacher, shapes = parts.teacher_model, stage.feed.shapes_of_step
    needed = step_flops(
        parts.model,
        shapes,
        {path: parts.shapes[path] for path in parts.trained},
        teacher,
    )
    peak = (peak_flops(devices[0]) or float("nan")) * len(devices)
    loss, weight = counts["loss"]
    return {
        "seconds": seconds,
        "rate": stage.feed.tokens / seconds,
        "share": needed / seconds / peak,
        "planned": planned.step.total_bytes,
        "measured": memory_peak() or float("nan"),
        "compiled": planned.step.compile_seconds,
        "loss": float(loss / weight),
    }


def changed(
    config: Train, options: argparse.Namespace, folder: Path, devices: list[jax.Device]
) -> Train:
    """The config on random tokens, with what was asked for."""
    stage = config.stages[0]
    rows = stage.feed
    if not isinstance(rows, Rows):
        raise SystemExit(f"{options.train} reads no rows; give a run that does.")
    on = make_mesh(config.mesh, config.axis_types, devices)
    count = (options.rows or rows.rows) * rows_over(on)
    tokens = np.random.default_rng(0).integers(0, 50_000, 4 * count * rows.length)
    tokens.astype(np.uint32).tofile(folder / "tokens.bin")
    source = TokenFiles((str(folder / "*.bin"),), dtype="uint32", boundary=50_001)
    feed = replace(rows, source=source, rows=count)
    return replace(
        config,
        stages=(replace(stage, feed=feed),),
        micro=options.micro or config.micro,
        remat=options.remat or config.remat,
    )


def given(options: argparse.Namespace) -> list[str]:
    """The options but for the meshes, for another process."""
    kept = {k: v for k, v in vars(options).items() if k not in ("mesh", "one") and v}
    return [part for name, value in kept.items() for part in (f"--{name}", str(value))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", default="distil_llama_3_2_1b")
    parser.add_argument("--mesh", nargs="+", default=["data=1"])
    parser.add_argument("--rows", type=int, help="of a device, instead of the run's")
    parser.add_argument("--micro", type=int, help="parts of a step, instead of its own")
    parser.add_argument("--remat", help="what a layer keeps, instead of the run's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
