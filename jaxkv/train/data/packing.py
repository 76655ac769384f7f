"""Documents to rows, planned from their lengths alone: best fit, longest first.

A text longer than a row is cut into pieces of a row's length, and what is left of it is
a document like any other, with a segment and positions of its own. All others stay
whole: each goes, the longest first, to the row with the least room that still holds it,
or to a new one. That is best-fit packing (Ding et al., 2024, arXiv:2404.10830): as good
as no padding where there are short documents, and no document split that fits a row.
A document with a prompt is never split; one longer than a row is left out, and counted.

grain's own packers work on a stream, so what is in a row depends on all that a process
read before it, and on how many processes share the data. A plan makes rows that any
process reaches by their number, that are the same for any number of processes, and that
grain's shuffle and mix take as they are. A plan costs 24 bytes and a microsecond a
document, ten where rows are of 131,072 tokens. The rows are one epoch's; every epoch
has them in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int

from jaxkv.train.data.files import called
from jaxkv.train.data.source import Opening, Row, join_segments, sub_seed
from jaxkv.train.data.store import Tokens


@dataclass(frozen=True)
class Plan:
    """The pieces of each row, in order, and the documents that are in none.

    `start` and `size` are a piece's tokens in all that there are, `prompt` how many of
    them are one, and row i has the pieces from `row[i]` to `row[i + 1]`.
    """

    start: Int[np.ndarray, " X"]
    size: Int[np.ndarray, " X"]
    prompt: Int[np.ndarray, " X"]
    row: Int[np.ndarray, " Y"]
    dropped: int


def plan(
    ends: Int[np.ndarray, " D"],
    prompts: Int[np.ndarray, " D"],
    length: int,
    seed: int,
) -> Plan:
    """Packs documents that end before `ends`; ties of length are broken by `seed`."""
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    sizes = ends - starts
    fits = (prompts == 0) | (sizes <= length)
    starts, sizes, prompts = starts[fits], sizes[fits], prompts[fits]

    full, rest = np.divmod(sizes, length)
    first = np.cumsum(full) - full
    within = np.arange(full.sum()) - np.repeat(first, full)
    whole_start = np.repeat(starts, full) + within * length
    whole_prompt = np.repeat(prompts, full)

    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(rest))
    order = shuffled[np.argsort(-rest[shuffled], kind="stable")]
    row = best_fit(rest[order].tolist(), length)
    order = order[np.argsort(row, kind="stable")]

    counts = np.concatenate([np.ones(len(whole_start), np.int64), np.bincount(row)])
    return Plan(
        start=np.concatenate([whole_start, starts[order] + full[order] * length]),
        size=np.concatenate(
            [np.full(len(whole_start), length, np.int32), rest[order].astype(np.int32)]
        ),
        prompt=np.concatenate([whole_prompt, prompts[order]]).astype(np.int32),
        row=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        dropped=int((~fits).sum()),
    )


def best_fit(sizes: Sequence[int], length: int) -> Int[np.ndarray, " X"]:
    """The row of each size: the fullest that still holds it, else the next new one.

    Example:
      >>> best_fit([5, 4, 3, 2, 2], 8).tolist()
      [0, 1, 0, 1, 1]
    """
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by their room
    rooms = 0  # bit r is set where there is a row of room r
    found, rows = np.empty(len(sizes), np.int64), 0
    for i, size in enumerate(sizes):
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            row, room = rows, length
            rows += 1
        left = room - size
        if left:
            open_rows[left].append(row)
            rooms |= 1 << left
        found[i] = row
    return found


class PackedRows:
    """The rows of some files, as a source of grain's: each is made when it is read."""

    def __init__(self, files: Sequence[Tokens], length: int, seed: int) -> None:
        self._files, self._length = files, length
        sizes = [file.size for file in files]
        self._first = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        offsets = zip(files, self._first, strict=False)
        ends = np.concatenate([file.ends + first for file, first in offsets])
        prompts = np.concatenate([file.prompts for file in files])
        self.documents, self.tokens = len(ends), int(self._first[-1])
        self.plan = plan(ends, prompts, length, seed)

    def __len__(self) -> int:
        return len(self.plan.row) - 1

    def __getitem__(self, index: int) -> Row:
        made = self.plan
        pieces = range(int(made.row[index]), int(made.row[index + 1]))
        return join_segments(
            ((self._read(j), int(made.prompt[j])) for j in pieces), self._length
        )

    def __str__(self) -> str:
        padding = 1 - int(self.plan.size.sum()) / (len(self) * self._length)
        counts = {
            "documents": f"{self.documents:,}",
            "left out as longer than a row": f"{self.plan.dropped:,}",
            "tokens": f"{self.tokens:,}",
            f"rows of {self._length} an epoch": f"{len(self):,}",
            "padding": f"{padding:.1%}",
        }
        if not self.plan.dropped:
            del counts["left out as longer than a row"]
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    def _read(self, piece: int) -> np.ndarray:
        start = int(self.plan.start[piece])
        file = int(np.searchsorted(self._first, start, side="right")) - 1
        start -= int(self._first[file])
        return self._files[file].read(start, int(self.plan.size[piece]))


def packed(
    files: Sequence[Tokens], paths: Sequence[Path], opening: Opening
) -> grain.MapDataset:
    """The rows of some files without end, every epoch in an order of its own.

    `paths` are what the files were made of.

    Raises ValueError, one sentence: an id is outside the vocabulary, there is no
    document, or every one has a prompt and is longer than a row.
    """
    for file in files:
        if file.largest >= opening.vocabulary:
            raise ValueError(
                f"{file.name}: token id {file.largest} is outside the model's "
                f"vocabulary of {opening.vocabulary}; was it made with another "
                "tokenizer?"
            )
    rows = PackedRows(files, opening.length, sub_seed(opening.seed, 0))
    if not rows.documents:
        raise ValueError(f"{called(paths)}: there is no document in it; give data.")
    if not len(rows):
        raise ValueError(
            f"{called(paths)}: each of {rows.documents} documents is longer than a "
            f"row of {opening.length} tokens; give longer rows."
        )
    opening.tell(f"{called(paths)}: {rows}")
    seed = sub_seed(opening.seed, 1)
    return grain.MapDataset.source(rows).shuffle(seed=seed).repeat()
