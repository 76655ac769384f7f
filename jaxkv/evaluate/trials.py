"""Trials: the questions that every method of a comparison is asked, in batches.

A trial is one question about one context. Two ways to ask it:

    aware      context and question are compressed together; the last prompt token is
               run again on the compressed cache
    agnostic   the context is compressed alone; each of its questions is then asked of
               a copy of that cache

Batches have one shape: the last one is filled with repeats, whose answers are dropped.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.tasks import Task
from jaxkv.prompts import Prompts, bucket, pad


@dataclass(frozen=True)
class Trial:
    """One question about one context, in tokens."""

    task: str
    sample: int
    question: int
    context_ids: tuple[int, ...]  # with <bos>, where the tokenizer adds it
    question_ids: tuple[int, ...]
    question_text: str
    references: tuple[str, ...]

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


@dataclass(frozen=True)
class Batch:
    """Prompts that go through one prefill, and what their caches are then asked."""

    prompts: Prompts
    rerun: int  # last tokens of each prompt that are fed instead of stored
    real: int  # rows before the repeats
    asks: tuple[Ask, ...]


def draw(
    tokenizer: Tokenizer, tasks: Sequence[Task], context: int, samples: int, seed: int
) -> tuple[Trial, ...]:
    """Trials of `samples` contexts a task, each a function of (seed, task, index)."""
    trials = []
    for task in tasks:
        for i in range(samples):
            key = [seed, zlib.crc32(task.name.encode()), i]
            sample = task(tokenizer, context, np.random.default_rng(key))
            context_ids = tuple(tokenizer.encode(sample.context).ids)
            for j, question in enumerate(sample.questions):
                asked = tokenizer.encode(f" {question.text}", add_special_tokens=False)
                trials.append(
                    Trial(
                        task=task.name,
                        sample=i,
                        question=j,
                        context_ids=context_ids,
                        question_ids=tuple(asked.ids),
                        question_text=question.text,
                        references=question.references,
                    )
                )
    return tuple(trials)


def answer_tokens(
    tokenizer: Tokenizer, tasks: Sequence[Task], context: int, seed: int
) -> int:
    """The tokens of the longest ideal answer, and two to spare."""
    longest = 0
    for task in tasks:
        sample = task(tokenizer, context, np.random.default_rng(seed))
        for question in sample.questions:
            ids = tokenizer.encode(f" {question.answer}", add_special_tokens=False).ids
            longest = max(longest, len(ids))
    return longest + 2


def batches(
    trials: Sequence[Trial], setting: str, size: int, vocabulary: int, longest: int
) -> tuple[Batch, ...]:
    """The trials of one setting, "aware" or "agnostic", in batches of one shape.

    Raises ValueError for a prompt above `longest` tokens or ids outside `vocabulary`.
    """
    aware = setting == "aware"
    groups = _aware(trials) if aware else _agnostic(trials)
    S = bucket(max(len(t.prompt_ids) for t in trials))
    T = bucket(max(len(ids) for group in groups for ids in group.asked), 1)
    made = []
    for start in range(0, len(groups), size):
        real = groups[start : start + size]
        rows = real + real[:1] * (size - len(real))
        asks = []
        for j in range(max(len(group.trials) for group in real)):
            asked = [row.asked[min(j, len(row.asked) - 1)] for row in rows]
            mine = [g.trials[j] if j < len(g.trials) else None for g in real]
            repeats = [None] * (size - len(real))
            asks.append(Ask(pad(asked, vocabulary, longest, T), (*mine, *repeats)))
        prompts = pad([row.prompt for row in rows], vocabulary, longest, S)
        made.append(Batch(prompts, int(aware), len(real), tuple(asks)))
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


def _aware(trials: Sequence[Trial]) -> list[_Group]:
    return [_Group(t.prompt_ids, (t.prompt_ids[-1:],), (t,)) for t in trials]


def _agnostic(trials: Sequence[Trial]) -> list[_Group]:
    groups = []
    for _, found in groupby(trials, key=lambda t: (t.task, t.sample)):
        same = tuple(found)
        asked = tuple(t.question_ids for t in same)
        groups.append(_Group(same[0].context_ids, asked, same))
    return groups
