"""Models whose caches are small: made by recipe, trained, and asked like the demo.

    python benchmarks/small_caches.py run --only mla_6x ccgqa --out small_caches
    python benchmarks/small_caches.py table --out small_caches

`run` makes each model by the commands that its recipe names and asks it all tasks, 200
answers each at least; what is there already is not made again, so that a run that was
cut short goes on, and several may share a folder and have a GPU each
(CUDA_VISIBLE_DEVICES). `table` is what they keep of the demo's cache and of its score.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxkv.evaluate.tasks import TASKS

ALONE = ("common_words", "frequent_words")  # families that ask a context one question
NEEDLES = ("single_needle", "multi_key", "multi_value", "multi_query")
# A teacher of three times the demo's parameters; it did not teach better.
LARGER = (
    "--model.width 384 --model.feed-forward 1024 --model.layers 8 "
    "--model.query-heads 12 --stages.1.steps 6000"
)
WIDE = "snapkv(pool=15)"  # which reaches all of an answer of eight words
SHARES = (0.75, 0.6, 0.5, 0.4, 0.33, 0.25)


@dataclass(frozen=True)
class Made:
    """How a model is made and asked: options of `jaxkv convert`, `train`, `compare`.

    of: the entry whose model is cut by `cut`, another `jaxkv convert`, or only asked.
    teacher: the entry whose model it is trained towards, where that is not the demo.
    """

    convert: str = ""
    train: str = ""
    teacher: str = ""
    of: str = ""
    cut: str = ""
    method: str = "full"
    keep: float = 1.0
    tasks: tuple[str, ...] = tuple(TASKS)


ON_NEEDLES = tuple(name for name in TASKS if name.startswith(NEEDLES))
MADE = {
    "demo": Made(),
    "demo_snapkv": Made(method="snapkv", keep=0.25, tasks=ON_NEEDLES),
    "demo_snapkv_wide": Made(method=WIDE, keep=0.25, tasks=ON_NEEDLES),
    "mla_6x": Made("--to mla --rank 48 --rope-dim 32", "mla_demo"),
    "mla_10x": Made("--to mla --rank 32 --rope-dim 16", "mla_demo"),
    "larger": Made(train=f"demo {LARGER}"),
    "mla_10x_of_larger": Made(
        "--to mla --rank 32 --rope-dim 16", "mla_demo", teacher="larger"
    ),
    "mla_6x_snapkv": Made(of="mla_6x", method="snapkv", keep=0.25, tasks=ON_NEEDLES),
    "mla_6x_snapkv_wide": Made(of="mla_6x", method=WIDE, keep=0.25, tasks=ON_NEEDLES),
    "ccgqa": Made(train="ccgqa_demo"),
    "transmla_untrained": Made("--to transmla --rank 128 --rope-dim 64 --no-norm"),
    "transmla": Made("--to transmla --rank 64 --rope-dim 64", "transmla_demo"),
    "eigen_untrained": Made("--to eigen --keep-bytes 0.6"),
    "eigen": Made("--to eigen --keep-bytes 0.6", "eigen_demo"),
    "gqa": Made("--to gqa --kv-heads 2", "gqa_demo"),
    "matryoshka": Made("--to matryoshka --keep-bytes 1", "matryoshka_demo"),
} | {
    f"matryoshka_{share:g}": Made(
        of="matryoshka",
        cut=f"--to matryoshka --no-search --key-share 0.62 --keep-bytes {share}",
    )
    for share in SHARES
}


@dataclass(frozen=True)
class Run:
    """Makes, trains and asks models."""

    out: Path = Path("small_caches")
    """folder of all that is made"""
    only: tuple[str, ...] = tuple(MADE)
    """names of models"""
    minutes: float | None = None
    """of training, each model"""
    batch: int = 50
    """prompts at a time"""


@dataclass(frozen=True)
class TableOf:
    """A table in Markdown of what was asked so far."""

    out: Path = Path("small_caches")
    """folder of a run"""


def run(options: Run) -> None:
    """Model by model; raises SystemExit where a command fails."""
    unknown = [name for name in options.only if name not in MADE]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: give some of {', '.join(MADE)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        ask(options, name, model_of(options, name))


def model_of(options: Run, name: str) -> str:
    """The name or folder of a model, once it is made."""
    made, folder = MADE[name], options.out / name
    model = model_of(options, made.of) if made.of else "demo"
    for what, convert in (("converted", made.convert), ("cut", made.cut)):
        if convert:
            if not (folder / what).is_dir():
                jaxkv("convert", "--model", model, *convert.split(), out=folder / what)
            model = str(folder / what)
    if made.train:
        if not (folder / "trained/model").is_dir():
            how: list[object] = ["--model", model] if made.convert else []
            if made.teacher:
                how += ["--teacher", model_of(options, made.teacher)]
            if options.minutes is not None:
                how += ["--minutes", options.minutes]
            jaxkv("train", *made.train.split(), *how, out=folder / "trained")
        model = str(folder / "trained/model")
    return model


def ask(options: Run, name: str, model: str) -> None:
    """All tasks of an entry, those with one question a context apart."""
    made = MADE[name]
    for alone, samples in ((False, 100), (True, 200)):
        tasks = [task for task in made.tasks if task.startswith(ALONE) == alone]
        out = options.out / name / ("asked_alone" if alone else "asked")
        if not tasks or (out / "compare.json").is_file():
            continue
        how = ("--methods", made.method, "--keep", made.keep, "--question", "aware")
        size = ("--context", 2048, "--samples", samples, "--batch", options.batch)
        jaxkv("compare", "--model", model, *how, *size, "--tasks", *tasks, out=out)


def jaxkv(command: str, *arguments: object, out: Path) -> None:
    """One command of ours, as a user would give it."""
    words = ["jaxkv", command, *map(str, arguments), "--out", str(out)]
    print("$", shlex.join(words), flush=True)
    program = "import sys; from jaxkv.cli.main import main; sys.exit(main())"
    if subprocess.run([sys.executable, "-c", program, *words[1:]]).returncode:
        raise SystemExit(f"{shlex.join(words)} failed.")


def table(options: TableOf) -> None:
    """Prints a row for each model that was asked."""
    print("| model | bytes, of the demo's | mean | sparse | dense | n | training |")
    print("|---|---|---|---|---|---|---|")
    whole_cache = {path.parent.name: row for path, row in rows_of(options.out / "demo")}
    for name in MADE:
        scores: dict[str, float] = {}
        count, shares = 0, []
        for path, row in rows_of(options.out / name):
            scores |= row["tasks"]
            count += row["n"]
            if path.parent.name in whole_cache:
                of = whole_cache[path.parent.name]["cache_bytes"]
                shares.append(row["cache_bytes"] / of)
        if not scores:
            continue
        dense = [x for task, x in scores.items() if task.endswith("_dense")]
        sparse = [x for task, x in scores.items() if not task.endswith("_dense")]
        whole = [*scores.values()]
        means = (f"{sum(x) / len(x):.3f}" for x in (whole, sparse, dense))
        log = options.out / name / "trained/log.jsonl"
        took = "none"
        if log.is_file():
            last = json.loads(log.read_text().splitlines()[-1])
            took = f"{last['step']} steps, {last['seconds']:.0f} s"
        share = f"{sum(shares) / len(shares):.3f}" if shares else "n/a"
        cells = [name, share, *means, str(count), took]
        print(f"| {' | '.join(cells)} |")


def rows_of(folder: Path) -> Iterator[tuple[Path, dict]]:
    """The one row of each of its comparisons."""
    for path in sorted(folder.glob("asked*/compare.json")):
        yield path, json.loads(path.read_text())["rows"][0]


def main() -> None:
    chosen = tyro.cli(
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[TableOf, tyro.conf.subcommand("table")],
        description=__doc__,
    )
    table(chosen) if isinstance(chosen, TableOf) else run(chosen)


if __name__ == "__main__":
    main()
