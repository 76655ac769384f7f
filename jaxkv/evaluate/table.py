"""Table: what a comparison found, to be looked at, drawn and saved."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxkv.evaluate.kept import KeptRow, Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One method at one keep, asked in one way; None where it could not take part.

    Bytes are a prompt's, on average; times are a batch's (`jaxkv.evaluate.compare`).
    Each ci95 is None too where a task has one context.
    """

    method: str
    keep: float  # as asked; full keeps 1
    question: str  # aware or agnostic
    n: int  # answers
    context: int = 0  # tokens of context and question, of the longest prompt
    tasks: Mapping[str, float] | None = None  # mean share of references in the answer
    score: float | None = None  # mean over the tasks that count
    ci95: tuple[float, float] | None = None
    sparse: float | None = None  # those of them where a few facts are asked about
    sparse_ci95: tuple[float, float] | None = None
    dense: float | None = None  # those where much of the context is
    dense_ci95: tuple[float, float] | None = None
    difference: float | None = None  # to full's score, if full takes part
    difference_ci95: tuple[float, float] | None = None  # paired
    perplexity: float | None = None  # of held-out text, agnostic only
    perplexity_n: int = 0  # tokens it is the mean of
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
    context: int = 0
    depth: float | None = None  # where the asked fact stands, from 0 to 1, if known


@dataclass(frozen=True)
class Table:
    """The rows of a comparison, the answers behind them, and what they depend on."""

    rows: tuple[Row, ...]
    answers: tuple[Answer, ...]
    model: str
    context: int  # the longest, where there are several
    samples: int
    batch: int
    seed: int
    device: str
    dtype: str
    version: str
    command: str
    groups: int = 1  # of kv heads, in each of which budgets of heads sum
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    prompts: tuple[Prompt, ...] = ()
    kept: tuple[KeptRow, ...] = ()

    @property
    def contexts(self) -> tuple[int, ...]:
        """The lengths of context that there are rows of."""
        return tuple(sorted({row.context for row in self.rows}))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes report.html, its pictures, and the data, each whole or not at all.

        The data: compare.json (rows), answers.jsonl, kept.json (kept.py has the form).
        Raises ValueError when `folder` is a file or cannot be written to.
        """
        from jaxkv.evaluate.plots.pictures import draw_all
        from jaxkv.evaluate.report import report

        folder = make_folder(folder)
        pictures = draw_all(self)
        for picture in pictures:
            _write(folder / picture.file, picture.png)
        _write(folder / "answers.jsonl", "".join(map(_line, self.answers)).encode())
        _write(folder / "kept.json", _kept(self).encode())
        _write(folder / "report.html", report(self, pictures).encode())
        bare = asdict(replace(self, answers=(), prompts=(), kept=()))
        rows = bare.pop("rows")
        about = {
            k: v for k, v in bare.items() if k not in ("answers", "prompts", "kept")
        }
        text = json.dumps({"schema": SCHEMA, **about, "rows": rows}, indent=2) + "\n"
        _write(folder / "compare.json", text.encode())

    def plot(self) -> "Figure":
        """Score against bytes, one panel a question; full is the dashed line."""
        from jaxkv.evaluate.plots.bytes import plot

        return plot(self)

    def plot_kept(self, question: str | None = None) -> "Figure":
        """Which positions each row and head kept of one prompt; aware, if there."""
        from jaxkv.evaluate.plots.kept import plot_kept

        return plot_kept(self, question or self.prompts[0].question)


def make_folder(folder: str | os.PathLike) -> Path:
    """The folder, made if need be; ValueError where files cannot be written to it."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"{path}: it cannot be written to ({error}).") from None


def check_folder(folder: str | os.PathLike) -> None:
    """Raises as `make_folder` does, and leaves no folder that was not there."""
    path = Path(folder)
    missing = [parent for parent in (path, *path.parents) if not os.path.exists(parent)]
    try:
        make_folder(path)
    finally:
        for parent in missing:
            if os.path.isdir(parent):
                parent.rmdir()


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer)) + "\n"


def _kept(table: Table) -> str:
    prompts = [asdict(prompt) for prompt in table.prompts]
    rows = [row.record() for row in table.kept]
    return json.dumps({"schema": SCHEMA, "prompts": prompts, "rows": rows}) + "\n"


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
