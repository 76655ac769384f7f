"""Rows of a source as text: what a model is trained on, to be looked at."""

from itertools import groupby

import numpy as np
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from jaxkv.train.data.batches import batches
from jaxkv.train.data.source import Row, Source

COLOURS = ("cyan", "yellow", "green", "magenta", "blue")
"""Of the segments of a row, in turn."""


def show(
    source: Source,
    count: int,
    *,
    length: int,
    tokenizer: Tokenizer,
    seed: int = 0,
    vocabulary: int | None = None,
    console: Console | None = None,
) -> None:
    """Prints the first `count` rows of a source as text, and how full each is.

    Segments differ in colour; what weighs as a target is underlined, and what does not
    is dim.

    Raises ValueError as `batches` does.
    """
    console = console or Console()
    steps = batches(
        source,
        rows=1,
        length=length,
        seed=seed,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
    )
    try:
        for _ in range(count):
            batch = next(steps)
            number = int(batch.pop("index")[0])
            row = {name: values[0] for name, values in batch.items()}
            used, segments = int((row["segment"] > 0).sum()), int(row["segment"].max())
            console.rule(
                f"row {number}: {segments} segments, {used} of {length} tokens, "
                f"{int((row['weight'] > 0).sum())} targets"
            )
            console.print(row_text(row, tokenizer))
    finally:
        steps.close()


def row_text(row: Row, tokenizer: Tokenizer) -> Text:
    """A row's tokens as text, a line a segment, styled as `show` says."""
    text = Text()
    kinds = list(
        zip(row["segment"].tolist(), (row["weight"] > 0).tolist(), strict=True)
    )
    last = 0
    for (segment, target), places in groupby(range(len(kinds)), key=kinds.__getitem__):
        if not segment:
            continue
        ids = row["tokens"][np.array(list(places))].tolist()
        between = "" if not text else "\n" if segment != last else " "
        said = tokenizer.decode(ids, skip_special_tokens=False)
        style = f"{COLOURS[(segment - 1) % len(COLOURS)]} "
        text.append(between).append(said, style + ("underline" if target else "dim"))
        last = segment
    return text
