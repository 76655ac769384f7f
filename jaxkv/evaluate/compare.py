"""compare: every method on the same prompts, one prefill for all.

The answers of a method come from its compressed cache alone: a prompt's last token, or
the whole question, is run again on it (trials.py).

What the times mean, all in seconds for one batch of prompts, on a warm program:

    prefill_s      one pass over the prompts and the compressions of all rows together,
                   which share it: the same figure in every row of a setting
    decode_step_s  one decode step: whole answers divided by their steps
    compile_s      what the first batch took longer than the others: the shared prefill,
                   and the row's own feed and decode (rows whose caches have one shape
                   share programs, and the first of them pays)
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.evaluate.data import make_trials, read_lines
from jaxkv.evaluate.entrants import Named, calibrated, entrants
from jaxkv.evaluate.kept import KeptRow, Prompt, shown_prompt
from jaxkv.evaluate.measure import measure
from jaxkv.evaluate.perplexity import perplexities
from jaxkv.evaluate.plan import SETTINGS, Plan, chosen, plan_tasks, plan_trials
from jaxkv.evaluate.rows import answers_of, kept_rows, table_rows
from jaxkv.evaluate.table import Answer, Row, Table
from jaxkv.layerwise import head_groups, mesh_of
from jaxkv.mesh import rows_over
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder
from jaxkv.models.load import load

DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("jax", "jaxlib", "flax", "numpy")
Progress = Callable[[int, int, str], None]  # done, total, what is next
Model = str | os.PathLike | tuple[Decoder, Tokenizer | None]


def compare(
    model: Model = "demo",
    methods: Sequence[Named] | Mapping[str, Method] | str | None = None,
    keep: Sequence[float] = (0.12,),
    context: int | Sequence[int] = 2048,
    samples: int = 1,
    tasks: Sequence[str] | str | None = None,
    question: str = "both",
    batch: int = 8,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
    *,
    data: str | os.PathLike | None = None,
    perplexity: bool = False,
    mesh: Mesh | str | None = None,
) -> Table:
    """Answers, bytes and seconds of each method at each keep.

    methods: names, which may carry parameters, "snapkv(pool=1)", and ("mine", Method)
    for a row of your own; "all" are those that ship, "core" (the default) a few. keep:
    fractions of the prompt. context: tokens of context and question, one length or
    several. samples: contexts a task, most with two questions. tasks: names, "sparse",
    "dense", "all" or "core" (the default). question: "aware", "agnostic" or "both".
    batch: prompts at a time. dtype: of the parameters, when `model` is a name.
    progress: called with (done, total, what) as it goes. data: a JSONL file of
    questions (data.py) instead of tasks, contexts and samples.
    perplexity: of held-out text too, in the agnostic setting; never with data.
    mesh: what the model is to lie on, as `load` takes it, when `model` is a name; a
    model that is given stays where it lies. Batches fill up to what the mesh divides.
    Answers and slots are those of one device, but for rows whose heads share a budget:
    they share it in each of the mesh's `tensor` groups of kv heads.

    Raises ValueError, one sentence, for anything unknown or out of range.

    Example:
      >>> table = compare("demo", ["full", "snapkv"], context=256, samples=1)
      >>> [row.method for row in table.rows if row.question == "aware"]
      ['full', 'snapkv']
    """
    contexts = (context,) if isinstance(context, int) else tuple(context)
    _check(contexts, samples, batch, seed, question)
    if data is not None and tasks is not None:
        raise ValueError("Give tasks or a data file, not both.")
    rows = entrants([methods] if isinstance(methods, str) else methods, keep)
    named = chosen([tasks] if isinstance(tasks, str) else tasks)
    lines = [] if data is None else read_lines(data)
    name, decoder, tokenizer = _loaded(model, dtype, mesh)
    config, on = decoder.config, mesh_of(decoder)
    places = 1 if on is None else rows_over(on)
    rows = calibrated(rows, decoder, tokenizer, progress)
    if data is None:
        sizes = samples, batch, seed, question, perplexity, places
        plans = [
            plan_tasks(config, tokenizer, named, length, *sizes)
            for length in dict.fromkeys(contexts)
        ]
    else:
        trials = make_trials(lines, tokenizer, config.max_position)
        plans = [plan_trials(config, trials, batch, question, places)]
        samples = len({trial.sample for trial in trials})
    total = sum(plan.ticks(rows) for plan in plans)
    done = count()

    def tick(what: str) -> None:
        if progress is not None:
            progress(next(done), total, what)

    found = _Found()
    for plan in plans:
        found.add(decoder, tokenizer, rows, plan, tick)
    return Table(
        rows=tuple(found.rows),
        answers=tuple(found.answers),
        kept=tuple(found.kept),
        prompts=tuple(found.prompts),
        model=name,
        context=max(plan.context for plan in plans),
        samples=samples,
        batch=max(plan.size for plan in plans),
        seed=seed,
        device=_device(on),
        groups=head_groups(decoder),
        dtype=decoder.table[...].dtype.name,
        version=importlib.metadata.version("jaxkv"),
        versions={
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command="jaxkv.compare",
    )


class _Found:
    """What becomes of the plans, one after the other."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.answers: list[Answer] = []
        self.kept: list[KeptRow] = []
        self.prompts: list[Prompt] = []

    def add(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        rows: Sequence,
        plan: Plan,
        tick: Callable[[str], None],
    ) -> None:
        """Runs a plan; the prompts of the first are those that are shown."""
        first = not self.rows
        for setting, made in plan.settings.items():
            trial, prompt = shown_prompt(plan.trials, setting, tokenizer)
            found = measure(
                model,
                tokenizer,
                plan.fit(rows, setting),
                made,
                headroom=plan.headroom,
                shown=trial,
                tick=tick,
            )
            read = {}
            if setting == "agnostic":
                read = perplexities(
                    model,
                    plan.readers(rows),
                    plan.texts,
                    headroom=plan.headroom,
                    tick=tick,
                )
            said = answers_of(found, setting, plan)
            self.rows += table_rows(rows, found, setting, plan, said, read)
            self.answers += [answer for own in said.values() for answer in own]
            if first:
                self.prompts.append(prompt)
                self.kept += kept_rows(found, prompt, made)


def _check(
    contexts: Sequence[int], samples: int, batch: int, seed: int, question: str
) -> None:
    if not contexts:
        raise ValueError("There is no context to compare at; give one at least.")
    sizes = [*(("context", n) for n in contexts), ("samples", samples)]
    for name, value in [*sizes, ("batch", batch)]:
        if value < 1:
            raise ValueError(f"{name}={value}; give one at least.")
    if seed < 0:
        raise ValueError(f"seed={seed} is below 0.")
    if question not in (*SETTINGS, "both"):
        raise ValueError(f"question={question!r} is not aware, agnostic or both.")


def _device(mesh: Mesh | None) -> str:
    """What it runs on: "cpu", or "8 x cpu (data 2, tensor 4)"."""
    kind = jax.devices()[0].device_kind
    if mesh is None:
        return kind
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    return f"{mesh.size} x {kind}{f' ({axes})' if axes else ''}"


def _loaded(
    model: Model, dtype: DTypeLike | None, mesh: Mesh | str | None
) -> tuple[str, Decoder, Tokenizer]:
    """The model's name, the model and its tokenizer."""
    if isinstance(model, tuple):
        if mesh is not None:
            raise ValueError(
                "A model that is given stays where it lies; give mesh to jaxkv.load."
            )
        name, (decoder, tokenizer) = "given", model
    else:
        if dtype is not None and str(dtype) not in DTYPES:
            raise ValueError(f"dtype={dtype} is none of {', '.join(DTYPES)}.")
        name = os.fspath(model)
        decoder, tokenizer = load(name, dtype, mesh)
    if tokenizer is None:
        raise ValueError(
            f"{name}: it has no tokenizer, and the tasks are in words; give a folder "
            "with tokenizer.json."
        )
    return name, decoder, tokenizer
