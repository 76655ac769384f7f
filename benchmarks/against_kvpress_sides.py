"""The two sides of against_kvpress.py: what both are given, and how each is run."""

import json
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, groupby, takewhile
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.measure import measure
from jaxkv.evaluate.trials import Trial, batches
from jaxkv.method import method, names
from jaxkv.models.find import demo_folder
from jaxkv.prefill import prefill
from jaxkv.prompts import bucket, pad

PEER = Path(__file__).with_name("against_kvpress_peer.py")
PAIRS = {  # kvpress's press: our row with its defaults
    "full": "full",
    "snapkv": "snapkv_kvpress",
    "streaming_llm": "streaming_llm",
    "keydiff": "keydiff",
    "knorm": "knorm",
    "expected_attention": "expected_attention",
    "tova": "tova_kvpress",
    "pyramidkv": "pyramidkv_kvpress",
    "pyramidkv(beta=2)": "pyramidkv_kvpress(beta=2)",  # steep at any keep
    "adakv": "adakv_kvpress",
    "critical_snapkv": "critical_snapkv_kvpress",
    "adakv_expected_attention": "adakv_expected_attention",
}
Pairs = dict[str, tuple[str, Entrant]]  # "press keep": press, our row at that keep


@dataclass(frozen=True)
class Unit:
    """Tokens that are compressed, and what the cache is then asked."""

    setting: str
    ids: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    trials: tuple[Trial, ...]

    @property
    def key(self) -> str:
        """What tells it from the others."""
        first = self.trials[0]
        return f"{self.setting} {first.task} {first.sample} {first.question}"


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
) -> Pairs:
    """Each press and its row at each keep; says which rows there are not yet."""
    shortest = min(len(unit.ids) for unit in units)
    found = {}
    for press in methods:
        if press not in PAIRS:
            raise ValueError(f"There is no press {press!r} here ({', '.join(PAIRS)}).")
        name = PAIRS[press]
        if name.split("(")[0] not in names():
            print(f"{press} is left out: no row {name!r}", file=sys.stderr)
            continue
        for k in (1.0,) if press == "full" else keep:
            entrant = Entrant(name, method(name, keep=k))
            if why := entrant.excuse(shortest):
                raise ValueError(f"{name} at keep {k} {why}; give more.")
            found[f"{press} {k:g}"] = press, entrant
    if not found:
        raise ValueError("There is nothing to compare; name a method and a keep.")
    return found


def peer(options, units, pairs: Pairs, steps: int, looked_at: Sequence[Unit]) -> dict:
    """What kvpress answers and keeps, by Unit.key; from a process of its own.

    It stays in the folder that is written to: a run that was stopped later finds it.
    """
    job = {
        "model": str(demo_folder() if options.model == "demo" else options.model),
        "threads": options.threads,
        "separate": options.separate,
        "steps": steps,
        "entrants": {n: (press, e.keep) for n, (press, e) in pairs.items()},
        "prompts": {unit.key: (unit.ids, unit.asked) for unit in units},
        "positions": [unit.key for unit in looked_at],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    asked, target = json.dumps(job), options.out / "kvpress_found.json"
    source = options.out / "kvpress_job.json"
    if target.exists() and source.read_text() == asked:
        print(f"kvpress's answers are those of {target}", file=sys.stderr)
        return json.loads(target.read_text())
    target.unlink(missing_ok=True)
    source.write_text(asked)
    found = together(options, job)
    target.write_text(json.dumps(found))
    return found


def together(options, job: dict) -> dict:
    """What `workers` processes find, each with its share of the prompts."""
    count, prompts = options.workers, list(job["prompts"].items())
    running = []
    for i in range(count):
        source, target = (options.out / f".{name}_{i}.json" for name in "jf")
        source.write_text(json.dumps(job | {"prompts": dict(prompts[i::count])}))
        command = [options.peer_python, PEER, source, target]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append((process, source, target))
    found: dict = {}
    with progress("kvpress") as tick:
        done = Counter()
        for i, line in lines_of([process for process, *_ in running]):
            if line.startswith("progress "):
                done[i] = int(line.split()[1])
                tick(sum(done.values()), len(prompts))
    for process, source, target in running:
        if process.wait():
            raise ValueError(f"{options.peer_python} failed; its message is above.")
        for name, part in json.loads(target.read_text()).items():
            own = found.setdefault(name, {})
            if name == "seconds":
                part = {k: own.get(k, 0) + s for k, s in part.items()}
            own |= part
        source.unlink()
        target.unlink()
    return found


def lines_of(processes: Sequence[subprocess.Popen]) -> Iterator[tuple[int, str]]:
    """Lines that processes print, as they come, with the number of each process."""
    with selectors.DefaultSelector() as waiting:
        for i, process in enumerate(processes):
            assert process.stdout is not None
            waiting.register(process.stdout, selectors.EVENT_READ, i)
        while waiting.get_map():
            for key, _ in waiting.select():
                line = key.fileobj.readline()
                if line:
                    yield key.data, line
                else:
                    waiting.unregister(key.fileobj)


def ours(model, tokenizer, units: Sequence[Unit], pairs: Pairs, size: int):
    """Our answers by entrant, unit and question, and the seconds of it all."""
    trials = [
        replace(trial, sample=i, question=j, context_ids=unit.ids, question_ids=asked)
        for i, unit in enumerate(units)
        for j, (trial, asked) in enumerate(zip(unit.trials, unit.asked, strict=True))
    ]
    config = model.config
    made = batches(trials, "agnostic", size, config.vocabulary, config.max_position)
    entrants = entrants_of(pairs)
    total, done = max(len(made), 2) * (len(entrants) + 1), count(1)
    began = time.perf_counter()
    with progress(f"jaxkv, {units[0].setting}") as tick:
        found = measure(
            model,
            tokenizer,
            entrants,
            made,
            headroom=bucket(max(len(t.question_ids) + t.steps for t in trials), 64),
            shown=trials[0],
            tick=lambda _: tick(next(done), total),
        )
    seconds = time.perf_counter() - began
    said = {}
    for entrant, own in found.measured.items():
        every = iter(trials)
        said[entrant] = [
            [own.answers[next(every).key] for _ in unit.asked] for unit in units
        ]
    return said, seconds


def said_by(tokenizer, ids: Sequence[int], trial: Trial, stops: Sequence[int]) -> str:
    """An answer in words, as ours are cut: at a stop token, and at its own length."""
    own = takewhile(lambda token: token not in stops, ids[: trial.steps])
    return tokenizer.decode(list(own))


def positions(model, units: Sequence[Unit], pairs: Pairs) -> dict[Entrant, list]:
    """The positions that our rows keep, by entrant, unit, layer and kv head."""
    found: dict[Entrant, list] = {entrant: [] for entrant in entrants_of(pairs)}
    methods = tuple(entrant.method for entrant in found)
    for unit in units:
        prompts = pad(unit.ids, model.config.vocabulary, model.config.max_position)
        caches = prefill(model, prompts, methods, headroom=1)
        for entrant, cache in zip(found, caches, strict=True):
            found[entrant].append([layer[0] for layer in cache.positions])
    return found


def entrants_of(pairs: Pairs) -> list[Entrant]:
    return list(dict.fromkeys(entrant for _, entrant in pairs.values()))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; where that is no terminal, a line every tenth."""
    console = Console(stderr=True)
    columns = bars.TextColumn(what), bars.BarColumn(), bars.MofNCompleteColumn()
    times = bars.TimeElapsedColumn(), bars.TimeRemainingColumn()
    off = not console.is_terminal
    with bars.Progress(*columns, *times, console=console, disable=off) as bar:
        line = bar.add_task("", total=None)

        def tick(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)
            if off and 10 * done // total > 10 * (done - 1) // total:
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

        yield tick
