"""Table: what a comparison found, to be looked at, drawn and saved."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One method at one keep, asked in one way; None where it could not take part.

    Bytes are a prompt's, on average; times are a batch's (`jaxkv.evaluate.compare`).
    """

    method: str
    keep: float  # as asked; full keeps 1
    question: str  # aware or agnostic
    n: int  # answers
    tasks: Mapping[str, float] | None = None  # mean share of references in the answer
    score: float | None = None  # mean over all answers
    ci95: tuple[float, float] | None = None  # None for one context a task too
    difference: float | None = None  # to full's score, if full takes part
    difference_ci95: tuple[float, float] | None = None  # paired
    slots: float | None = None  # held a head, mean
    keep_held: float | None = None  # slots over the prompt's tokens
    cache_bytes: float | None = None
    headroom_bytes: float | None = None
    full_cache_bytes: float | None = None
    prefill_s: float | None = None
    decode_step_s: float | None = None
    compile_s: float | None = None
    note: str = ""  # why it could not take part


@dataclass(frozen=True)
class Answer:
    """One answer of one row."""

    method: str
    keep: float
    question: str
    task: str
    sample: int
    asked: str
    answer: str
    references: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Table:
    """The rows of a comparison, the answers behind them, and what they depend on."""

    rows: tuple[Row, ...]
    answers: tuple[Answer, ...]
    model: str
    context: int
    samples: int
    batch: int
    seed: int
    device: str
    dtype: str
    version: str
    command: str

    def save(self, folder: str | os.PathLike) -> None:
        """Writes compare.json, compare.png and answers.jsonl, each whole or not at all.

        Raises ValueError when `folder` is a file or cannot be made.
        """
        folder = make_folder(folder)
        about = asdict(self)
        answers = about.pop("answers")
        rows = about.pop("rows")
        text = json.dumps({"schema": SCHEMA, **about, "rows": rows}, indent=2) + "\n"
        lines = "".join(json.dumps(answer) + "\n" for answer in answers)
        _write(folder / "answers.jsonl", lambda f: f.write(lines.encode()))
        _write(
            folder / "compare.png",
            lambda f: self.plot().savefig(f, format="png", dpi=150),
        )
        _write(folder / "compare.json", lambda f: f.write(text.encode()))

    def plot(self) -> "Figure":
        """Score against bytes, one panel a question; full is the dashed line."""
        from jaxkv.evaluate.plot import plot

        return plot(self)


def make_folder(folder: str | os.PathLike) -> Path:
    """The folder, made if need be; ValueError when that cannot be."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path}: no folder can be made there ({error}).") from None
    return path


def _write(path: Path, write) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
