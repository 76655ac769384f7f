"""Our rows against kvpress 0.5.5: the same model, prompts, questions and keep.

transformers and kvpress run in a process of their own, in an environment of their own:

    python -m venv kvpress && kvpress/bin/pip install torch==2.13.0
    kvpress/bin/pip install kvpress==0.5.5 transformers==5.2.0 tokenizers==0.22.2

Both sides load the model in float32, compress the same tokens and answer greedily with
the same number of tokens; the answers of both are scored here.

    aware      prompt = context + question; all but its last token are compressed, and
               the last token is fed to the cache
    agnostic   the context is compressed; each question is fed to a copy of the cache

Prints a table, and writes against_kvpress.json and .md. Example:

    python benchmarks/against_kvpress.py --peer-python kvpress/bin/python \
        --methods snapkv adakv --keep 0.12 --samples 25
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from against_kvpress_report import Row, report
from rich import progress as bars
from rich.console import Console

from jaxkv.cli.arguments import keep_programs
from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.intervals import interval
from jaxkv.evaluate.measure import measure
from jaxkv.evaluate.tasks import TASKS, score, task
from jaxkv.evaluate.trials import Trial, answer_tokens, batches, draw
from jaxkv.method import method, names
from jaxkv.models.load import demo_folder, load
from jaxkv.phases import prefill
from jaxkv.prompts import bucket, pad

PAIRS = {  # kvpress's press: our row with its defaults
    "full": "full",
    "snapkv": "snapkv_kvpress",
    "streaming_llm": "streaming_llm",
    "keydiff": "keydiff",
    "knorm": "knorm",
    "expected_attention": "expected_attention",
    "tova": "tova_kvpress",
    "pyramidkv": "pyramidkv_kvpress",
    "adakv": "adakv_kvpress",
    "critical_snapkv": "critical_snapkv_kvpress",
    "adakv_expected_attention": "adakv_expected_attention",
}
PEER = Path(__file__).with_name("against_kvpress_peer.py")
Tick = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Options:
    """The same prompts through jaxkv and through kvpress, side by side."""

    peer_python: Path
    """python of the environment that has kvpress 0.5.5, transformers 5.2.0 and torch"""
    model: str = "demo"
    """demo, or a folder in Hugging Face's Llama format with a tokenizer.json"""
    methods: tuple[str, ...] = tuple(list(PAIRS)[:9])
    """kvpress's presses, full for none"""
    keep: tuple[float, ...] = (0.12, 0.25)
    """fractions of the prompt"""
    samples: int = 50
    """contexts a task, each with two questions"""
    tasks: tuple[str, ...] = tuple(TASKS)
    """needle tasks"""
    question: Literal["aware", "agnostic", "both"] = "both"
    """compress the context with the question, before it is known, or either"""
    context: int = 2048
    """tokens of context and question"""
    batch: int = 8
    """prompts at a time, ours; kvpress takes one"""
    positions: int = 4
    """prompts a setting whose kept positions are compared too"""
    separate: bool = False
    """a prefill for each press, as kvpress documents it; slower, the same answers"""
    threads: int = 2
    """of torch"""
    seed: int = 0
    """of the contexts"""
    out: Path = Path("against_kvpress")
    """folder to write to"""


@dataclass(frozen=True)
class Unit:
    """Tokens that are compressed, and what the cache is then asked."""

    setting: str
    ids: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    trials: tuple[Trial, ...]


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    keep_programs()
    try:
        run(options)
    except ValueError as error:
        print(f"against_kvpress: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: Options) -> None:
    """Draws the trials, runs both sides and reports."""
    model, tokenizer = load(options.model)
    tasks = [task(name) for name in options.tasks]
    steps = answer_tokens(tokenizer, tasks, options.context, options.seed)
    drawn = draw(tokenizer, tasks, options.context, options.samples, options.seed)
    settings = ("aware", "agnostic")
    if options.question != "both":
        settings = (options.question,)
    units = [unit for setting in settings for unit in cut(drawn, setting)]
    pairs = paired(options.methods, options.keep, units)
    looked_at = [
        i
        for setting in settings
        for i in [i for i, u in enumerate(units) if u.setting == setting][
            : options.positions
        ]
    ]
    found = peer(options, units, pairs, steps, looked_at)
    theirs = {
        name: [[tokenizer.decode(ids) for ids in unit] for unit in answers]
        for name, answers in found["answers"].items()
    }
    rows = []
    for setting in settings:
        at = [i for i, unit in enumerate(units) if unit.setting == setting]
        mine = [units[i] for i in at]
        said, seconds = ours(options, model, tokenizer, mine, pairs, steps)
        shown = [i for i in looked_at if i in at]
        kept = positions(model, [units[i] for i in shown], pairs)
        for name, (press, entrant) in pairs.items():
            their_kept = [found["kept"][looked_at.index(i)][name] for i in shown]
            rows.append(
                row(
                    mine,
                    press,
                    entrant,
                    [theirs[name][i] for i in at],
                    said[entrant],
                    overlaps(kept[entrant], their_kept),
                    np.mean([found["slots"][i][name] for i in at]),
                )
            )
            print(f"{setting} {name}: ours {seconds[entrant]:.0f} s", flush=True)
    about = dataclasses.asdict(options) | {"steps": steps} | found["about"]
    about |= {"seconds": found["seconds"]}
    report(rows, about, options.out)


def cut(trials: Sequence[Trial], setting: str) -> Iterator[Unit]:
    """What is compressed, and what is asked, in one setting."""
    if setting == "aware":
        for trial in trials:
            *ids, last = trial.prompt_ids
            yield Unit(setting, tuple(ids), ((last,),), (trial,))
        return
    for _, found in groupby(trials, key=lambda t: (t.task, t.sample)):
        same = tuple(found)
        asked = tuple(t.question_ids for t in same)
        yield Unit(setting, same[0].context_ids, asked, same)


def paired(
    methods: Sequence[str], keep: Sequence[float], units: Sequence[Unit]
) -> dict[str, tuple[str, Entrant]]:
    """Press and row at each keep, by "press keep"; says which rows there are not."""
    shortest = min(len(unit.ids) for unit in units)
    found = {}
    for press in methods:
        if press not in PAIRS:
            raise ValueError(f"No press {press!r} here; known: {', '.join(PAIRS)}.")
        name = PAIRS[press]
        if name not in names():
            print(f"{press}: left out, there is no row {name!r}", file=sys.stderr)
            continue
        for k in (1.0,) if press == "full" else keep:
            entrant = Entrant(name, method(name, keep=k))
            if why := entrant.excuse(shortest):
                raise ValueError(f"{name} at keep {k} {why}; give more.")
            found[f"{press} {k:g}"] = press, entrant
    return found


def peer(options, units, pairs, steps: int, looked_at: list[int]) -> dict:
    """What kvpress answers and keeps, from a process of its own."""
    job = {
        "model": str(demo_folder() if options.model == "demo" else options.model),
        "threads": options.threads,
        "separate": options.separate,
        "steps": steps,
        "positions": looked_at,
        "entrants": {n: (press, e.keep) for n, (press, e) in pairs.items()},
        "prompts": [{"ids": unit.ids, "asked": unit.asked} for unit in units],
    }
    with tempfile.TemporaryDirectory() as folder, progress("kvpress") as tick:
        source, target = Path(folder, "job.json"), Path(folder, "found.json")
        source.write_text(json.dumps(job))
        command = [options.peer_python, PEER, source, target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("progress "):
                    tick(*map(int, line.split()[1:]))
        if process.returncode:
            raise ValueError(f"{options.peer_python} failed; its message is above.")
        return json.loads(target.read_text())


def ours(options, model, tokenizer, units, pairs, steps: int):
    """Our answers by entrant, unit and question, and the seconds they took."""
    trials = [
        dataclasses.replace(
            trial, sample=i, question=j, context_ids=unit.ids, question_ids=asked
        )
        for i, unit in enumerate(units)
        for j, (trial, asked) in enumerate(zip(unit.trials, unit.asked, strict=True))
    ]
    longest, vocabulary = model.config.max_position, model.config.vocabulary
    made = batches(trials, "agnostic", options.batch, vocabulary, longest)
    entrants = list(dict.fromkeys(entrant for _, entrant in pairs.values()))
    total, done = max(len(made), 2) * (len(entrants) + 1), 0
    with progress(f"jaxkv {units[0].setting}") as bar:

        def tick(_: str) -> None:
            nonlocal done
            bar(done, total)
            done += 1

        found = measure(
            model,
            tokenizer,
            entrants,
            made,
            headroom=bucket(max(len(t.question_ids) for t in trials) + steps, 64),
            steps=steps,
            tick=tick,
        )
    said, seconds = {}, {}
    for entrant, own in found.measured.items():
        every = iter(trials)
        said[entrant] = [
            [own.answers[next(every).key] for _ in unit.asked] for unit in units
        ]
        seconds[entrant] = sum(own.feed_s) + sum(own.decode_s)
    return said, seconds


def positions(model, units: Sequence[Unit], pairs) -> dict[Entrant, list]:
    """The positions that our rows keep, by entrant, unit, layer and kv head."""
    entrants = list(dict.fromkeys(entrant for _, entrant in pairs.values()))
    found: dict[Entrant, list] = {entrant: [] for entrant in entrants}
    methods = tuple(entrant.method for entrant in entrants)
    for unit in units:
        prompts = pad(unit.ids, model.config.vocabulary, model.config.max_position)
        caches = prefill(model, prompts, methods, headroom=1)
        for entrant, cache in zip(entrants, caches, strict=True):
            found[entrant].append([layer[0] for layer in cache.positions])
    return found


def overlaps(ours, theirs) -> np.ndarray:
    """|ours and theirs| / the larger of both, [units, layers, kv heads]."""
    return np.array(
        [
            [
                [
                    len(set(a.tolist()) & set(b)) / max(len(a), len(b))
                    for a, b in zip(one, other, strict=True)
                ]
                for one, other in zip(unit, their_unit, strict=True)
            ]
            for unit, their_unit in zip(ours, theirs, strict=True)
        ]
    )


def row(units, press: str, entrant: Entrant, theirs, said, overlap, slots) -> Row:
    """Scores of both sides, their difference, and how alike answers and slots are."""
    by_context: dict[str, dict[int, list]] = {}
    same = []
    for unit, their_unit, our_unit in zip(units, theirs, said, strict=True):
        for trial, a, b in zip(unit.trials, their_unit, our_unit, strict=True):
            pair = score(a, trial.references), score(b, trial.references)
            contexts = by_context.setdefault(trial.task, {})
            contexts.setdefault(trial.sample, []).append(pair)
            same.append(a == b)
    scores = np.array(
        [
            [np.mean(pairs, axis=0) for pairs in contexts.values()]
            for contexts in by_context.values()
        ]
    )  # [tasks, samples, (theirs, ours)]
    difference = scores[..., 1] - scores[..., 0]
    return Row(
        press=press,
        row=entrant.name,
        keep=entrant.keep,
        question=units[0].setting,
        n=len(same),
        theirs=float(scores[..., 0].mean()),
        ours=float(scores[..., 1].mean()),
        difference=float(difference.mean()),
        ci95=interval(difference),
        same_answers=float(np.mean(same)),
        their_slots=float(slots),
        our_slots=float(np.mean([entrant.method.slots(len(u.ids)) for u in units])),
        overlap=float(overlap.mean()) if overlap.size else None,
        least_overlap=float(overlap.min()) if overlap.size else None,
    )


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A bar on stderr; a line each tenth where stderr is no terminal."""
    console = Console(stderr=True)
    columns = bars.TextColumn(what), bars.BarColumn(), bars.MofNCompleteColumn()
    timed = bars.TimeElapsedColumn(), bars.TimeRemainingColumn()
    bar = bars.Progress(
        *columns, *timed, console=console, disable=not console.is_terminal
    )
    with bar:
        line = bar.add_task("", total=None)

        def tick(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)
            if (
                not console.is_terminal
                and done * 10 // total > (done - 1) * 10 // total
            ):
                print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

        yield tick


if __name__ == "__main__":
    sys.exit(main())
