"""What against_kvpress.py found: a table, a JSON file and a Markdown table."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

GATE = 0.02  # the difference of mean scores that passes
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One press and one row of ours at one keep, asked in one way."""

    press: str
    row: str
    keep: float
    question: str  # aware or agnostic
    n: int  # answers
    theirs: float  # mean scores
    ours: float
    difference: float  # ours - theirs
    ci95: tuple[float, float] | None  # of the difference, paired over contexts
    same_answers: float  # share of answers that are equal, word for word
    their_slots: float  # kept a head, mean
    our_slots: float
    overlap: float | None  # share of kept positions in common, mean over heads
    least_overlap: float | None  # of one head of one layer of one prompt


HEAD = ("press", "row", "keep", "kvpress", "jaxkv", "difference")
HEAD += ("same answers", "slots", "positions in common", "least")


def report(rows: list[Row], about: dict, folder: Path) -> None:
    """Prints a table a setting, and writes against_kvpress.json and .md."""
    console = Console()
    console.width = max(console.width, 130)
    text = []
    for question in dict.fromkeys(row.question for row in rows):
        found = [row for row in rows if row.question == question]
        title = f"question {question}, n = {found[0].n}"
        grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in HEAD:
            left = name in ("press", "row")
            grid.add_column(name, justify="left" if left else "right", no_wrap=True)
        for row in found:
            grid.add_row(*cells(row), style="" if passes(row) else "bold red")
        console.print(grid)
        text += [f"{title}:", "", markdown(HEAD), markdown(["---"] * len(HEAD))]
        text += [*(markdown(cells(row)) for row in found), ""]
    outside = [row for row in rows if not passes(row)]
    verdict = f"{len(rows) - len(outside)} of {len(rows)} rows are within {GATE}"
    console.print(f"{verdict} of kvpress's mean score.", highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema": SCHEMA, "gate": GATE, **about}
    record["rows"] = [asdict(row) for row in rows]
    write(folder / "against_kvpress.json", json.dumps(record, indent=1, default=str))
    write(folder / "against_kvpress.md", "\n".join(text))
    console.print(f"Written: {folder}/against_kvpress.json and .md", highlight=False)


def passes(row: Row) -> bool:
    return abs(row.difference) <= GATE + 1e-9


def cells(row: Row) -> list[str]:
    between = "" if row.ci95 is None else " [{:+.3f}, {:+.3f}]".format(*row.ci95)
    slots = f"{row.their_slots:.1f}"
    if abs(row.their_slots - row.our_slots) > 1e-6:
        slots += f" / {row.our_slots:.1f}"
    common = ["", ""]
    if row.overlap is not None and row.least_overlap is not None:
        common = [f"{row.overlap:.4f}", f"{row.least_overlap:.3f}"]
    return [
        row.press,
        row.row,
        f"{row.keep:g}",
        f"{row.theirs:.3f}",
        f"{row.ours:.3f}",
        f"{row.difference:+.3f}{between}",
        f"{row.same_answers:.3f}",
        slots,
        *common,
    ]


def markdown(values) -> str:
    return f"| {' | '.join(values)} |"


def write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text.rstrip("\n") + "\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
