"""Trials: the questions that every method of a comparison is asked, in batches.

A trial is one question about one context. Two ways to ask it:

    aware      context and question are compressed together; the last prompt token is
               run again on the compressed cache
    agnostic   the context is compressed alone; each of its questions is then asked of
               a copy of that cache

Prompts of one bucket of lengths make batches of one shape, those with answers of like
length together; the last batch is filled with repeats, whose answers are dropped.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.tasks import Task, score
from jaxkv.prompts import Prompts, bucket, pad

SPARE = 2  # steps beyond the ideal answer
SMALLEST_ASK = 16  # tokens: both settings feed as many and share their programs
Grade = Callable[[str, tuple[str, ...]], float]


@dataclass(frozen=True)
class Trial:
    """One question about one context, in tokens."""

    task: str
    sample: int
    question: int
    context: str
    context_ids: tuple[int, ...]  # with <bos>, where the tokenizer adds it
    question_ids: tuple[int, ...]
    question_text: str
    references: tuple[str, ...]
    answer_ids: tuple[int, ...]  # of the ideal answer
    steps: int  # tokens the answer may take
    depth: float | None = None  # where the asked fact stands, if that is known
    grade: Grade = score  # of an answer, by the references

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the others."""
        return self.task, self.sample, self.question

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Context and question."""
        return self.context_ids + self.question_ids


@dataclass(frozen=True)
class Ask:
    """Tokens fed to a batch of caches, and whose answers follow; None is a repeat."""

    tokens: Prompts
    trials: tuple[Trial | None, ...]

    @property
    def steps(self) -> int:
        """Tokens that the longest of its answers may take."""
        return max(trial.steps for trial in self.trials if trial is not None)


@dataclass(frozen=True)
class Batch:
    """Prompts that go through one prefill, and what their caches are then asked."""

    prompts: Prompts
    rerun: int  # last tokens of each prompt that are fed instead of stored
    real: int  # rows before the repeats
    asks: tuple[Ask, ...]
    future: Prompts  # what will be asked and answered, for a method that may look

    @property
    def shape(self) -> tuple[int, ...]:
        """What its programs are compiled for."""
        return self.prompts.token_ids.shape

    def row(self, trial: Trial) -> int | None:
        """Which of its prompts `trial` is about, if any."""
        rows = [ask.trials.index(trial) for ask in self.asks if trial in ask.trials]
        return rows[0] if rows else None


def draw(
    tokenizer: Tokenizer, tasks: Sequence[Task], context: int, samples: int, seed: int
) -> tuple[Trial, ...]:
    """Trials of `samples` contexts a task, each a function of (seed, task, index)."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(f" {text}", add_special_tokens=False).ids)

    trials = []
    for task in tasks:
        for i in range(samples):
            key = [seed, zlib.crc32(task.name.encode()), i]
            sample = task(tokenizer, context, np.random.default_rng(key))
            context_ids = tuple(tokenizer.encode(sample.context).ids)
            for j, question in enumerate(sample.questions):
                trials.append(
                    Trial(
                        task=task.name,
                        sample=i,
                        question=j,
                        context=sample.context,
                        context_ids=context_ids,
                        question_ids=ids(question.text),
                        question_text=question.text,
                        references=question.references,
                        answer_ids=ids(question.answer),
                        steps=len(ids(question.answer)) + SPARE,
                        depth=question.depth,
                    )
                )
    return tuple(trials)


def batches(
    trials: Sequence[Trial],
    setting: str,
    size: int,
    vocabulary: int,
    longest: int,
    places: int = 1,
) -> tuple[Batch, ...]:
    """The trials of one setting, "aware" or "agnostic", in batches.

    Repeats fill a batch up to a multiple of `places` too, so that a mesh splits it.
    Raises ValueError for a prompt above `longest` tokens or ids outside `vocabulary`.
    """
    aware = setting == "aware"
    groups = sorted(_aware(trials) if aware else _agnostic(trials), key=_alike)
    asked = max(len(ids) for group in groups for ids in group.asked)
    T = bucket(asked, SMALLEST_ASK)
    F = bucket(max(len(group.future) for group in groups), 1)

    def batch(real: list["_Group"], rows: list["_Group"], S: int) -> Batch:
        asks = []
        for j in range(max(len(group.trials) for group in real)):
            these = [row.asked[min(j, len(row.asked) - 1)] for row in rows]
            mine = [g.trials[j] if j < len(g.trials) else None for g in real]
            repeats = [None] * (len(rows) - len(real))
            asks.append(Ask(pad(these, vocabulary, longest, T), (*mine, *repeats)))
        prompts = pad([row.prompt for row in rows], vocabulary, longest, S)
        future = pad([row.future for row in rows], vocabulary, F, F)
        return Batch(prompts, int(aware), len(real), tuple(asks), future)

    made = []
    for S, found in groupby(groups, key=lambda group: bucket(len(group.prompt))):
        alike = list(found)
        most = min(size, len(alike))
        B = most + -most % places
        for start in range(0, len(alike), most):
            real = alike[start : start + most]
            made.append(batch(real, real + real[:1] * (B - len(real)), S))
    return tuple(made)


def shortest(made: Sequence[Batch]) -> int:
    """Tokens of the shortest prompt."""
    return min(int(b.prompts.lengths.min()) for b in made)


@dataclass(frozen=True)
class _Group:
    """One prompt, what its cache is asked, and the trial each is."""

    prompt: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    trials: tuple[Trial, ...]

    @property
    def future(self) -> tuple[int, ...]:
        """What is asked and the ideal answer, one question after the other."""
        pairs = zip(self.asked, self.trials, strict=True)
        return tuple(i for asked, t in pairs for i in (*asked, *t.answer_ids))


def _alike(group: _Group) -> tuple[int, int, int]:
    """Groups that cost alike come together."""
    steps = max(trial.steps for trial in group.trials)
    return bucket(len(group.prompt)), len(group.trials), steps


def _aware(trials: Sequence[Trial]) -> list[_Group]:
    return [_Group(t.prompt_ids, (t.prompt_ids[-1:],), (t,)) for t in trials]


def _agnostic(trials: Sequence[Trial]) -> list[_Group]:
    by_context: dict[tuple[int, ...], list[Trial]] = {}
    for trial in trials:
        by_context.setdefault(trial.context_ids, []).append(trial)
    return [
        _Group(context_ids, tuple(t.question_ids for t in same), tuple(same))
        for context_ids, same in by_context.items()
    ]
