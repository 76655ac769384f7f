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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import jax
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.evaluate.entrants import Entrant, entrants
from jaxkv.evaluate.measure import measure
from jaxkv.evaluate.rows import answers_of, table_rows
from jaxkv.evaluate.table import Answer, Row, Table
from jaxkv.evaluate.tasks import TASKS, Task, task
from jaxkv.evaluate.trials import (
    Batch,
    Trial,
    answer_tokens,
    batches,
    draw,
    shortest,
)
from jaxkv.models.decoder import Decoder
from jaxkv.models.load import load
from jaxkv.prompts import bucket

SETTINGS = ("aware", "agnostic")
DTYPES = ("float32", "bfloat16", "float16")
SMALLEST_HEADROOM = 64
Progress = Callable[[int, int, str], None]  # done, total, what is next
Model = str | os.PathLike | tuple[Decoder, Tokenizer | None]


def compare(
    model: Model = "demo",
    methods: Sequence[str] | None = None,
    keep: Sequence[float] = (0.12,),
    context: int = 2048,
    samples: int = 4,
    tasks: Sequence[str] | None = None,
    question: str = "both",
    batch: int = 8,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
) -> Table:
    """Answers, bytes and seconds of each method at each keep.

    methods, tasks: names, all of them by default; a method's may carry parameters,
    "snapkv(pool=1)". keep: fractions of the prompt. context: tokens of context and
    question. samples: contexts a task, each with two questions. question: "aware",
    "agnostic" or "both". batch: prompts at a time. dtype: of the parameters, when
    `model` is a name. progress: called with (done, total, what) as it goes.

    Raises ValueError, one sentence, for anything unknown or out of range.

    Example:
      >>> table = compare("demo", ["full", "snapkv"], context=256, samples=1)
      >>> [row.method for row in table.rows if row.question == "aware"]
      ['full', 'snapkv']
    """
    _check(context, samples, batch, seed, question)
    rows = entrants(methods, keep)
    chosen = [task(name) for name in dict.fromkeys(TASKS if tasks is None else tasks)]
    if not chosen:
        raise ValueError("There is no task to compare on; name one at least.")
    name, decoder, tokenizer = _loaded(model, dtype)
    plan = _plan(decoder, tokenizer, chosen, context, samples, batch, seed, question)
    tick = _counter(plan, rows, progress)
    found_rows: list[Row] = []
    answers: list[Answer] = []
    for setting, made in plan.settings.items():
        found = measure(
            decoder,
            tokenizer,
            _fit(rows, made),
            made,
            headroom=plan.headroom,
            steps=plan.steps,
            tick=tick,
        )
        said = answers_of(found, setting, plan.trials)
        found_rows += table_rows(rows, found, setting, made, said)
        answers += [answer for own in said.values() for answer in own]
    return Table(
        rows=tuple(found_rows),
        answers=tuple(answers),
        model=name,
        context=context,
        samples=samples,
        batch=plan.size,
        seed=seed,
        device=jax.devices()[0].device_kind,
        dtype=decoder.table[...].dtype.name,
        version=importlib.metadata.version("jaxkv"),
        command="jaxkv.compare",
    )


@dataclass(frozen=True)
class _Plan:
    """What is asked, and the sizes that every program shares."""

    trials: tuple[Trial, ...]
    settings: dict[str, tuple[Batch, ...]]
    size: int  # prompts a batch
    steps: int  # tokens an answer may take
    headroom: int  # tokens of question and answer, as a bucket


def _plan(
    model: Decoder,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    context: int,
    samples: int,
    batch: int,
    seed: int,
    question: str,
) -> _Plan:
    longest, vocabulary = model.config.max_position, model.config.vocabulary
    steps = answer_tokens(tokenizer, tasks, context, seed)
    if context + steps > longest:
        raise ValueError(
            f"context={context} and answers of up to {steps} tokens pass the model's "
            f"context of {longest}; give {max(longest - steps, 0)} at most."
        )
    trials = draw(tokenizer, tasks, context, samples, seed)
    fed = max(len(t.question_ids) for t in trials)
    size = min(batch, len(tasks) * samples)
    settings = SETTINGS if question == "both" else (question,)
    return _Plan(
        trials=trials,
        settings={s: batches(trials, s, size, vocabulary, longest) for s in settings},
        size=size,
        steps=steps,
        headroom=bucket(fed + steps, SMALLEST_HEADROOM),
    )


def _check(context: int, samples: int, batch: int, seed: int, question: str) -> None:
    sizes = {"context": context, "samples": samples, "batch": batch}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}; give one at least.")
    if seed < 0:
        raise ValueError(f"seed={seed} is below 0.")
    if question not in (*SETTINGS, "both"):
        raise ValueError(f"question={question!r} is not aware, agnostic or both.")


def _loaded(model: Model, dtype: DTypeLike | None) -> tuple[str, Decoder, Tokenizer]:
    """The model's name, the model and its tokenizer."""
    if isinstance(model, tuple):
        name, (decoder, tokenizer) = "given", model
    else:
        if dtype is not None and str(dtype) not in DTYPES:
            raise ValueError(f"dtype={dtype} is none of {', '.join(DTYPES)}.")
        name = os.fspath(model)
        decoder, tokenizer = load(name, dtype)
    if tokenizer is None:
        raise ValueError(
            f"{name}: it has no tokenizer, and the tasks are in words; give a folder "
            "with tokenizer.json."
        )
    return name, decoder, tokenizer


def _fit(rows: Sequence[Entrant], made: Sequence[Batch]) -> list[Entrant]:
    """The rows that can reach their keep on every prompt."""
    return [row for row in rows if not row.excuse(shortest(made))]


def _counter(
    plan: _Plan, rows: Sequence[Entrant], progress: Progress | None
) -> Callable[[str], None]:
    """Tells `progress` what comes next, and how much has been done."""
    total = sum(
        max(len(made), 2) * (len(_fit(rows, made)) + 1)
        for made in plan.settings.values()
    )
    done = count()

    def tick(what: str) -> None:
        if progress is not None:
            progress(next(done), total, what)

    return tick
