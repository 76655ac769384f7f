"""Batches of a source: the share of one process, resumable on any number of them.

Row g of the endless sequence goes to step g // R, where R is the rows of all processes
together, and there to process g mod P. So a step trains on the same rows however many
processes there are, none twice and none left out, and where a run stands is one number.
"""

import grain
import numpy as np
from grain.experimental import ElasticIterator
from rich.console import Console
from tokenizers import Tokenizer

from jaxkv.train.data.source import Opening, Row, Source

THREADS = 2
"""That make batches ahead; what they do is mostly copying and waiting for disks."""

AHEAD = 4
"""Batches that wait to be used."""


def batches(
    source: Source,
    *,
    rows: int,
    length: int,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    vocabulary: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An iterator without end over this process's batches.

    A batch is a dict of arrays [rows, length], as in `jaxkv.train.data.source`: tokens,
    segment, position (int32) and weight (float32); and `index` (int64) [rows], the
    number of each row in the sequence of all. The epoch of row g of a source of n rows
    is g // n: within it each of its n rows comes once, in an order of that epoch.

    `get_state()` is {"global_next_index": rows that all processes have used}, the same
    in every process. `set_state` of it goes on at the very next row, also with another
    number of processes or rows. It says nothing of what the source was: store
    `fingerprint(source)` beside it and compare by `check_unchanged`.

    Process 0 tells on stderr what was read. `vocabulary` is the model's, that of the
    tokenizer when not given.

    Example:
      >>> from jaxkv.train.tokenizer import word_tokenizer
      >>> from jaxkv.train.data import Tasks, batches
      >>> source = Tasks(("single_needle",), lengths=(128,))
      >>> steps = batches(source, rows=2, length=256, tokenizer=word_tokenizer())
      >>> next(steps)["index"].tolist(), steps.get_state()
      ([0, 1], {'global_next_index': 2})
      >>> steps.close()

    Raises ValueError, one sentence, for whatever is wrong in the arguments or the data.
    """
    counts = {"rows": rows, "length": length, "process_count": process_count}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}; give one at least.")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index} is not one of {process_count} processes."
        )
    if seed < 0:
        raise ValueError(f"seed={seed}; give 0 or more.")
    if vocabulary is None:
        if tokenizer is None:
            raise ValueError("Without a tokenizer, give the model's vocabulary.")
        vocabulary = tokenizer.get_vocab_size()
    console = Console(stderr=True) if process_index == 0 else None
    opening = Opening(tokenizer, vocabulary, length, seed, console)
    return iter(
        ElasticIterator(
            source.rows(opening).map_with_index(_number),
            rows * process_count,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(THREADS, AHEAD),
        )
    )


def _number(index: int, row: Row) -> Row:
    return row | {"index": np.asarray(index, np.int64)}
