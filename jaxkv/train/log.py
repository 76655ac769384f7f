"""What a run says: a line of JSON now and then, TensorBoard, and a progress bar.

Counts are added up as they lie on the device; nothing waits for it between two lines.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.progress import Progress

from jaxkv.train.claim import write
from jaxkv.train.guard import Guard
from jaxkv.train.speed import memory_peak

Metrics = dict[str, float | int]


class Log:
    """Means since the last line, to `out`/log.jsonl, from process 0 alone.

    Where tensorboardX is installed they also go to `out`/tensorboard. `peak` is the
    FLOP/s of all devices, None where that is not known.
    """

    def __init__(
        self, out: Path, start: int, steps: int, guard: Guard, peak: float | None = None
    ) -> None:
        self._first = jax.process_index() == 0
        self._path, self._guard, self._peak = out / "log.jsonl", guard, peak
        records = self._earlier(start)
        self.last: Metrics = records[-1] if records else {}
        self._waiting: list[tuple[int, dict[str, Array]]] = []
        self._tokens, self._flops = 0, 0.0
        self._before = self.last.get("seconds", 0.0)
        self._began = self._since = time.monotonic()
        self._board = _board(out / "tensorboard", start) if self._first else None
        self._bar = Progress(console=Console(stderr=True), disable=not self._first)
        self._task = self._bar.add_task("train", total=steps, completed=start)

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board is not None:
            self._board.close()

    def add(
        self, number: int, counts: dict[str, Array], tokens: int, flops: float
    ) -> None:
        """Takes a step's counts, still on the device."""
        self._waiting.append((number, counts))
        self._tokens += tokens
        self._flops += flops

    def write(self, step: int) -> None:
        """A line of the means since the last one.

        Raises:
          FloatingPointError: a step since then broke the run.
        """
        fetched = [jax.device_get(counts) for _, counts in self._waiting]
        now = time.monotonic()
        seconds = now - self._since
        record: Metrics = {
            "step": step,
            "seconds": round(self._before + now - self._began, 2),
            "tokens_per_second": round(self._tokens / seconds),
        }
        if self._peak is not None:
            used = self._flops / seconds / self._peak
            record["model_flop_utilisation"] = round(used, 4)
        memory = memory_peak()
        if memory is not None:
            record["memory_peak_bytes"] = memory
        record |= _means(fetched)
        self._tokens, self._flops, self._since, self.last = 0, 0.0, now, record
        if self._first:
            self._tell(record)
        self.check()
        self._waiting = []

    def check(self) -> None:
        """Waits for the device.

        Raises:
          FloatingPointError: a step since the last line broke the run.
        """
        for number, counts in self._waiting:
            if float(counts["broken"][0]) >= 0:
                value, of = jax.device_get(counts["loss"])
                raise FloatingPointError(
                    self._guard.sentence(number, float(value / of))
                )

    def _tell(self, record: Metrics) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name in record.keys() - {"step"}:
                self._board.add_scalar(name, record[name], record["step"])
        exact = {name: value for name, value in record.items() if "exact" in name}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in exact.items())
        said = f"loss {record['loss']:.3f}  {shown}"
        self._bar.update(self._task, completed=record["step"], description=said)

    def _earlier(self, start: int) -> list[Metrics]:
        """Lines up to `start`; those of steps that will be taken again are cut off."""
        if not self._first or not self._path.is_file():
            return []
        text = self._path.read_text()
        # What follows the last line break is a line that was being written.
        lines = text[: text.rfind("\n") + 1].splitlines()
        records = [json.loads(line) for line in lines]
        records = [record for record in records if record["step"] <= start]
        write(self._path, "".join(json.dumps(record) + "\n" for record in records))
        return records


def _means(fetched: list[dict[str, np.ndarray]]) -> Metrics:
    """Of each name that any step told of."""
    record: Metrics = {}
    for name in sorted({name for counts in fetched for name in counts} - {"broken"}):
        # pyrefly: ignore[not-iterable] - pairs of arrays, one at least
        value, of = sum(counts[name] for counts in fetched if name in counts)
        record[name] = round(float(value / max(of, 1e-9)), 5)
    return record


def _board(folder: Path, start: int) -> Any:
    """TensorBoard's writer, or None where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start or None)
