"""The training loop: one jitted step after another, resumable to the bit.

Everything a step depends on is its state, its number and the config, so a run that is
killed goes on from its last checkpoint as if it had not been.

    python -m jaxkv.train.loop NAME|FILE OUT [MINUTES]
"""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxkv.mesh import make_mesh, rows_over
from jaxkv.rules import shardings
from jaxkv.stopped import Stopped
from jaxkv.train import hosts
from jaxkv.train.checkpoint import Checkpoints
from jaxkv.train.claim import claim
from jaxkv.train.config import Stage, Train, load
from jaxkv.train.feeding import Batch, Opening
from jaxkv.train.log import Log, Metrics
from jaxkv.train.parts import Parts, begin, describe
from jaxkv.train.record import Record
from jaxkv.train.report import tokenizer_of, write_report
from jaxkv.train.speed import peak_flops, step_flops
from jaxkv.train.step import Step, first_state, make_step
from jaxkv.train.stopping import Stopping


def train(
    config: Train,
    out: Path,
    minutes: float | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Metrics:
    """Trains, or goes on training, and writes `out`; returns the last metrics.

    `out` gets checkpoints/, log.jsonl, train.json, curve.png, and what was trained: a
    Hugging Face folder model/, or an add-on's calibration. `minutes` stands in for
    `config.minutes`; `devices` are all there are, when not given.

    Raises:
      ValueError: `out` holds a run of another config, or parts of the config do not fit
        each other or the devices.
      FloatingPointError: a loss is not a number.
      Stopped: a save failed; or SIGTERM came, and all that was done is saved.
    """
    minutes = config.minutes if minutes is None else minutes
    mesh = make_mesh(config.mesh, config.axis_types, devices)
    parts = describe(config)
    for _, stage in config.curriculum():
        stage.feed.check(parts.model, rows_over(mesh) * config.micro)
    shardings(mesh, parts.shapes)  # says what does not fit before anything is loaded
    record = Record(config)
    hosts.on_first(partial(claim, out, config))
    kept = Checkpoints(out / "checkpoints", config.keep_last, config.keep_every)
    with jax.set_mesh(mesh), kept as saved, Stopping() as stopping:
        trained, fixed = begin(parts, mesh)
        record.note(parts, fixed)
        first = first_state(config, trained, mesh)
        start, state = saved.restore(first, partial(record.check, out))
        end = None if minutes is None else time.monotonic() + 60 * minutes
        done, ends = start, False
        with Log(out, start, config.total, config.guard, _peak(mesh)) as log:
            for due in remaining(parts, mesh, start):
                number = np.int32(due.number)
                # pyrefly: ignore[bad-argument-type] - a scalar of numpy will do
                state, counts = due.step(state, fixed, number, due.given)
                done = due.number + 1
                log.add(due.number, counts, due.tokens, due.flops)
                late, ends = False, stopping.after(done)
                if done % config.log_every == 0 or done == config.total:
                    log.write(done)
                    late = _late(end)
                whole = done % config.save_every == 0 or done == config.total
                if whole or late or ends:
                    log.check()  # a broken run's state is not saved as of this step
                    saved.save(done, state, record.after(done))
                saved.check()
                if late or ends:
                    break
            saved.wait()
            if ends and done < config.total:
                raise Stopped(
                    f"SIGTERM came, and step {done} of {config.total} is saved; run "
                    "the same command to go on.",
                    143,
                )
        write_report(out, parts, parts.student(state["params"], fixed), log.last, done)
    return log.last


class Due(NamedTuple):
    """A step that is to be taken; what its stage says is found once for all of it."""

    number: int
    step: Step
    given: tuple[Batch, ...]
    tokens: int
    flops: float


def remaining(parts: Parts, mesh: Mesh, start: int) -> Iterator[Due]:
    """Each step from `start`."""
    seed, vocabulary = parts.config.seed, parts.model.vocabulary
    for first, stage in parts.config.curriculum():
        numbers = range(max(first, start), first + stage.steps)
        if not numbers:
            continue
        step = make_step(parts, mesh, first, stage)
        tokenizer = tokenizer_of(parts)
        behind = numbers.start - first
        given = stage.feed.open(Opening(mesh, seed, tokenizer, vocabulary, behind))
        tokens, flops = stage.feed.tokens, _flops(parts, stage)
        for number in numbers:
            yield Due(number, step, next(given), tokens, flops)


def _flops(parts: Parts, stage: Stage) -> float:
    trained = {path: parts.shapes[path] for path in parts.trained}
    shapes = stage.feed.shapes_of_step
    return step_flops(parts.model, shapes, trained, parts.teacher_model)


def _peak(mesh: Mesh) -> float | None:
    """FLOP/s of the whole mesh; None where one device's are not known."""
    one = peak_flops(mesh.devices.flat[0])
    return None if one is None else one * mesh.size


def _late(end: float | None) -> bool:
    """Whether the time is over, by the clock of process 0."""
    if end is None:
        return False
    late = time.monotonic() > end
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))


def main(arguments: list[str]) -> int:
    """`NAME|FILE OUT [MINUTES]`; returns the exit code, 2 for bad input."""
    try:
        if not 2 <= len(arguments) <= 3:
            raise ValueError(
                "Usage: python -m jaxkv.train.loop NAME|FILE OUT [MINUTES]"
            )
        name, out, *minutes = arguments
        train(load(name), Path(out), float(minutes[0]) if minutes else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
