"""The project's own tasks as training data, drawn as they are read."""

import zlib
from dataclasses import dataclass, replace

import grain
import numpy as np

from jaxkv.evaluate.tasks import TASKS, task
from jaxkv.evaluate.trials import Trial, draw
from jaxkv.train.data.source import Opening, Row, Source, join_segments

APART = zlib.crc32(b"jaxkv.train.data.tasks")
"""Keeps the samples apart from those of an evaluation by the same seed."""

ANSWER = 32
"""Tokens left for an answer at first; twice as many where it takes more."""

ENDLESS = 1 << 62


@dataclass(frozen=True)
class Tasks(Source):
    """Samples of the tasks of `jaxkv compare`: a context, a question and its answer.

    `names` are names of tasks, all when empty. `lengths` are the tokens of a sample at
    most; a row takes samples of lengths and tasks drawn evenly from these as long as
    one fits, and is one sample when empty. The answer's tokens weigh 1, all others 0.
    No sample comes twice, and none is one of an evaluation.

    Example:
      >>> Tasks(("two_hop", "verbatim_dense"), lengths=(512, 2048)).names
      ('two_hop', 'verbatim_dense')

    Raises ValueError for an unknown task; and, when it is opened, for a length in which
    one does not fit, and where there is no tokenizer.
    """

    names: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names:
            task(name)

    def rows(self, opening: Opening) -> grain.MapDataset:
        """Rows drawn by their number."""
        if opening.tokenizer is None:
            raise ValueError("Tasks need a tokenizer; give a model that has one.")
        if any(length > opening.length for length in self.lengths):
            raise ValueError(
                f"A sample of {max(self.lengths)} tokens is longer than a row of "
                f"{opening.length}; give longer rows."
            )
        drawn = DrawnRows(self, opening)
        drawn.check()
        return grain.MapDataset.source(drawn)


class DrawnRows:
    """Rows of samples, as a source of grain's without end."""

    def __init__(self, tasks: Tasks, opening: Opening) -> None:
        self._names = tasks.names or tuple(TASKS)
        self._lengths = np.array(sorted(tasks.lengths or (opening.length,)))
        self._opening = opening

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng([self._opening.seed, APART, index])
        room, documents = self._opening.length, []
        while fitting := int(np.searchsorted(self._lengths, room, side="right")):
            length = int(self._lengths[rng.integers(fitting)])
            name = self._names[rng.integers(len(self._names))]
            trial = self._draw(name, length, int(rng.integers(1 << 32)), index)
            documents.append(
                (np.array(trial.prompt_ids + trial.answer_ids), len(trial.prompt_ids))
            )
            room -= len(documents[-1][0])
        return join_segments(documents, self._opening.length)

    def check(self) -> None:
        """Raises ValueError if a task does not fit into the smallest length."""
        for name in self._names:
            self._draw(name, int(self._lengths[0]), 0, 0)

    def _draw(self, name: str, length: int, sample: int, row: int) -> Trial:
        """A sample of at most `length` tokens with its answer."""
        assert self._opening.tokenizer is not None
        asked = replace(task(name), asked=1)
        seed = APART | sample << 32 | row << 64
        left = ANSWER
        while True:
            (trial,) = draw(self._opening.tokenizer, [asked], length - left, 1, seed)
            ids = trial.prompt_ids + trial.answer_ids
            if max(ids) >= self._opening.vocabulary:
                raise ValueError(
                    f"Token id {max(ids)} of task {name} is outside the model's "
                    f"vocabulary of {self._opening.vocabulary}; give its own tokenizer."
                )
            if len(ids) <= length:
                return trial
            left *= 2
