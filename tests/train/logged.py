"""A run on eight CPU devices that logs which samples each step used, for its killers.

Every sample is a row of a token file and begins with its own number in two digits. The
file and the log are named by the environment, so that runs in different folders have
the same config.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.feeding import Batch, Opening
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine
from tests.train.tiny_runs import MODEL

ROWS, LENGTH, BASE = 8, 32, 60
TOKENS, LOG = "JAXKV_TEST_TOKENS", "JAXKV_TEST_LOG"


@dataclass(frozen=True)
class Logged(Rows):
    """Rows that say in a file what each step is given, before it is."""

    def open(self, opening: Opening) -> Iterator[tuple[Batch, ...]]:
        for number, given in enumerate(super().open(opening), opening.done):
            used = sorted(samples(given[0]))
            with Path(os.environ[LOG]).open("a") as log:
                log.write(json.dumps({"step": number, "samples": used}) + "\n")
            yield given


def samples(batch: Batch) -> set[int]:
    """The numbers of the samples in this process's part of a batch."""
    shards = batch["tokens"].addressable_shards
    first_BT = np.concatenate([np.asarray(shard.data)[:, :2] for shard in shards])
    return {int(high) * BASE + int(low) for high, low in first_BT}


def write_tokens(file: Path, count: int) -> None:
    """`count` samples, each a document of LENGTH tokens."""
    draw = np.random.default_rng(0)
    tokens_BT = draw.integers(0, BASE, (count, LENGTH), dtype=np.uint16)
    tokens_BT[:, 0], tokens_BT[:, 1] = np.divmod(np.arange(count), BASE)
    tokens_BT[:, -1] = BASE
    tokens_BT.tofile(file)


TRAIN = Train(
    model=MODEL,
    stages=(
        Stage(
            200,
            Logged(
                TokenFiles((os.environ.get(TOKENS, "tokens.bin"),), boundary=BASE),
                rows=ROWS,
                length=LENGTH,
            ),
        ),
    ),
    optimizer=AdamW(rate=WarmupCosine(1e-2, warmup=1)),
    dtype="float32",
    mesh="data=2,fsdp=2,tensor=2",
    log_every=10,
    save_every=5,
)
