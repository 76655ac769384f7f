"""A run on meshes of eight CPU devices, and on two processes of four: the same losses.

    python -m tests.train.meshes         50 steps of the demo: five meshes, each axis
                                         alone and all together, and two processes
    python -m tests.train.meshes --all   every mesh with both axis types, 20 runs

The demo's config and its first learning rates, but for its rows: 8 of 64 words a step
instead of 512 of 128, in fp32. One device is the measure; it prints the largest
relative difference of a loss, mesh by mesh, and ends with code 1 where one is above
1e-4.
Losses are as the log has them, to five decimals: 2e-6 is one unit of the last.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

MESHES = (
    "data=8",
    "fsdp=8",
    "tensor=4",
    "data=2,fsdp=4",
    "data=2,tensor=4",
    "fsdp=2,tensor=4",
    "data=2,fsdp=2,tensor=2",
)
PROCESSES = ("data=2,fsdp=4", "fsdp=2,tensor=4", "data=2,fsdp=2,tensor=2")
TYPES = ("auto", "explicit")
FEW = (
    ("data=8", "explicit", 1),
    ("fsdp=8", "auto", 1),
    ("tensor=4", "explicit", 1),
    ("data=2,fsdp=4", "auto", 1),
    ("data=2,fsdp=2,tensor=2", "explicit", 1),
    ("data=2,fsdp=2,tensor=2", "auto", 2),
)
CLOSE = 1e-4
NAME = "tests.train.meshes"


def losses(mesh: str, axis_types: str, steps: int, processes: int = 1) -> list[float]:
    """Of every step, of a run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        running = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.train.meshes",
                    "--one",
                    folder,
                    mesh,
                    axis_types,
                ]
                + [str(x) for x in (steps, processes, i, port)],
                env=os.environ | _environment(mesh, processes),
            )
            for i in range(processes)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError(f"{mesh} of {axis_types} ended with {codes}.")
        lines = (Path(folder) / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


def apart(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(our - their) / abs(their) for our, their in pairs)


def one(
    folder: str,
    mesh: str,
    axis_types: str,
    steps: int,
    processes: int,
    i: int,
    port: int,
) -> None:
    """The run itself, in this process."""
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, i)
    from jaxkv.train.config import Stage, load
    from jaxkv.train.feeding import Documents
    from jaxkv.train.loop import train
    from jaxkv.train.schedules import Linear, WarmupCosine

    demo = load("demo")
    first = demo.stages[0].feed
    assert isinstance(first, Documents)
    few = replace(first, shapes=((8, 64),))
    rate = demo.optimizer.rate
    assert isinstance(rate, WarmupCosine)
    config = replace(
        demo,
        stages=(Stage(demo.stages[0].steps, few), *demo.stages[1:]),
        steps=steps,
        # A run of 50 steps in all would climb to the peak in 49 of them, where so few
        # rows make a step so wild that rounding alone moves losses by 1e-4 (two halves
        # of a step on one device, instead of the whole, do so too).
        optimizer=replace(
            demo.optimizer, rate=Linear(0.0, rate.peak * steps / rate.warmup)
        ),
        dtype="float32",
        mesh=mesh,
        axis_types=axis_types,
        log_every=1,
        save_every=1000,
    )
    train(config, Path(folder))


def _environment(mesh: str, processes: int) -> dict[str, str]:
    from math import prod

    from jaxkv.mesh import axis_sizes

    devices = prod(axis_sizes(mesh).values()) // processes
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--all", action="store_true", help="every mesh, both types")
    options = parser.parse_args()
    steps = options.steps
    measure = losses("data=1", "auto", steps)
    print(f"one device: {measure[0]:.5f} to {measure[-1]:.5f} in {steps} steps")
    worst = 0.0
    for mesh, axis_types, processes in every() if options.all else FEW:
        found = apart(losses(mesh, axis_types, steps, processes), measure)
        worst = max(worst, found)
        said = f"{mesh:24} {axis_types:9} {processes} process(es)"
        print(f"{said}  {found:.2e}", flush=True)
    print(f"largest: {worst:.2e}, of {CLOSE:g} allowed")
    return int(worst > CLOSE)


def every() -> list[tuple[str, str, int]]:
    """(mesh, axis types, processes) of all runs."""
    meshes = [(mesh, 1) for mesh in MESHES] + [(mesh, 2) for mesh in PROCESSES]
    return [(mesh, types, count) for mesh, count in meshes for types in TYPES]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        folder, mesh, axis_types, *numbers = sys.argv[2:]
        one(folder, mesh, axis_types, *map(int, numbers))
        sys.exit(0)
    sys.exit(main())
