"""A run killed by SIGKILL at random moments and gone on with, against one that was not.

    python -m tests.train.kills --kills 20          of 200 steps, a checkpoint every 5
    python -m tests.train.kills --kills 3 --steps 40

Says of each kill at which step it came and whether a save was under way. Ends with code
1 unless the last checkpoint is the uninterrupted run's bit for bit, and every step used
the samples that it used there, all of them different.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxkv.train.checksums import is_sealed
from tests.train import launch, logged

EARLY = 0.2  # share of kills while a run starts, before its first step


class Told(NamedTuple):
    """What became of a killed run."""

    kills: int
    in_saves: int
    same_bits: bool
    same_samples: bool
    each_once: bool

    @property
    def holds(self) -> bool:
        return self.same_bits and self.same_samples and self.each_once


def try_kills(folder: Path, kills: int, steps: int, seed: int = 0) -> Told:
    """Runs both in `folder`."""
    logged.write_tokens(folder / "tokens.bin", logged.ROWS * steps)
    code, said = launch.run(
        *_command(folder, "whole", steps), **_names(folder, "whole")
    )
    if code:
        raise RuntimeError(f"The run that nothing kills ended with {code}: {said}")
    draw = random.Random(seed)
    in_saves = sum(_kill_one(folder, steps, i, kills, draw) for i in range(kills))
    code, said = launch.run(
        *_command(folder, "killed", steps), **_names(folder, "killed")
    )
    if code:
        raise RuntimeError(f"The run ended with {code} after {kills} kills: {said}")
    whole, killed = (_arrays(folder / name, steps) for name in ("whole", "killed"))
    same = whole.keys() == killed.keys() and all(
        whole[name].tobytes() == killed[name].tobytes() for name in whole
    )
    used, again = _samples(folder / "whole.log"), _samples(folder / "killed.log")
    once = sorted(one for step in used.values() for each in step for one in each)
    return Told(
        kills,
        in_saves,
        same,
        used == again and all(len(step) == 1 for step in again.values()),
        sorted(used) == list(range(steps)) and once == list(range(logged.ROWS * steps)),
    )


def _kill_one(
    folder: Path, steps: int, i: int, kills: int, draw: random.Random
) -> bool:
    """Starts the run and kills it; says where, and returns whether in a save."""
    process = launch.start(
        *_command(folder, "killed", steps), **_names(folder, "killed")
    )
    log = folder / "killed.log"
    before, began = _lines(log), time.monotonic()
    if draw.random() < EARLY:
        until = draw.uniform(0, 12)
        while process.poll() is None and time.monotonic() < began + until:
            time.sleep(0.01)
    else:
        # So many more steps that all kills together come before the last one.
        more = draw.randint(1, max(1, 2 * steps // (kills + 2)))
        while process.poll() is None and _lines(log) < before + more:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
    ended = process.poll()
    process.kill()
    said, _ = process.communicate()
    if ended not in (None, 0):
        raise RuntimeError(f"The run ended by itself with {ended}: {said}")
    saved = folder / "killed" / "checkpoints"
    names = [path.name for path in saved.iterdir()] if saved.is_dir() else []
    part = [n for n in names if not n.isdecimal() or not is_sealed(saved / n)]
    newest = max((int(n) for n in names if n not in part), default=0)
    last = max(_samples(log), default=-1) if log.is_file() else -1
    where = f"in the save {part[0]}" if part else "between saves"
    where = "too late" if ended == 0 else where
    print(
        f"kill {i + 1:2}: after {_lines(log) - before:3} steps, up to step "
        f"{last + 1:3}, newest whole checkpoint {newest:3}, {where}",
        flush=True,
    )
    return bool(part)


def _command(folder: Path, name: str, steps: int) -> tuple[object, ...]:
    return "train", launch.RUN, "--out", folder / name, "--steps", steps


def _names(folder: Path, name: str) -> dict[str, object]:
    return {
        logged.TOKENS: folder / "tokens.bin",
        logged.LOG: folder / f"{name}.log",
        "JAXKV_TOKENS": folder / "kept",
        "JAX_COMPILATION_CACHE_DIR": folder / "programs",
    }


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def _samples(log: Path) -> dict[int, set[tuple[int, ...]]]:
    """What each step was given, each time that it was taken."""
    used: dict[int, set[tuple[int, ...]]] = {}
    # A line that was being written when the kill came is joined by the next one.
    for found in re.finditer(
        r'\{"step": \d+, "samples": \[[\d, ]*\]\}', log.read_text()
    ):
        line = json.loads(found.group())
        used.setdefault(line["step"], set()).add(tuple(line["samples"]))
    return used


def _arrays(out: Path, step: int) -> dict[str, np.ndarray]:
    """The whole state of a checkpoint, on one device."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.training.Checkpointer((out / "checkpoints").absolute()) as saved:
        about = saved.checkpointables_metadata(step).metadata["state"]
        like = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
            for name, x in about.items()
        }
        state = saved.load_checkpointables(step, {"state": like})["state"]
    return {name: np.asarray(x) for name, x in state.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told = try_kills(Path(folder), asked.kills, asked.steps, asked.seed)
    print(
        f"{told.kills} kills, {told.in_saves} of them in a save, of a run of "
        f"{asked.steps} steps; final state bit for bit the same: {told.same_bits}; the "
        f"same samples in every step: {told.same_samples}; each sample once: "
        f"{told.each_once}; {time.monotonic() - began:.0f} s"
    )
    return int(not told.holds)


if __name__ == "__main__":
    sys.exit(main())
