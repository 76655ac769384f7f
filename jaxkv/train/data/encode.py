"""Text to tokens, once: what is in a file becomes an entry of the store.

Texts go to the tokenizer many at a time, which it encodes on all cores.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from rich.progress import Progress
from tokenizers import Tokenizer

from jaxkv.train.data.files import called
from jaxkv.train.data.source import Opening
from jaxkv.train.data.store import Tokens, Writer, entry, read_tokens

TEXTS, CHARACTERS = 4096, 4 << 20
"""Go to the tokenizer at once, at most."""


GROUP = 64 << 20
"""Bytes of files that become one entry: little is done again after a fault."""


class Part(NamedTuple):
    """Text of a document: `head`, encoded with special tokens, and `tail`, without.

    `head` is None where a document goes on, and is its prompt if `prompt`.
    """

    head: str | None
    tail: str = ""
    prompt: bool = False
    ends: bool = True


def encoded(
    paths: Sequence[Path],
    opening: Opening,
    made_how: dict[str, Any],
    read: Callable[[Path, BinaryIO], Iterator[Part]],
) -> list[Tokens]:
    """The tokens of the parts that `read` yields of some files; kept, and made once.

    `made_how` is JSON and says all that `read` depends on besides a file.

    Raises:
      ValueError: there is no tokenizer, or what `read` raises.
    """
    if opening.tokenizer is None:
        raise ValueError(
            f"{called(paths)}: text needs a tokenizer, and the model has none; give "
            "one with a tokenizer.json, or TokenFiles."
        )
    tokenizer = _unlimited(opening.tokenizer)
    known = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    total = sum(path.stat().st_size for path in paths)
    small = tokenizer.get_vocab_size() <= 1 << 16
    dtype = np.uint16 if small else np.uint32
    bar = Progress(
        console=opening.console, transient=True, disable=not opening.shows(total)
    )
    shown = bar.add_task("tokens", total=total)

    def make(group: Sequence[Path], folder: Path) -> dict[str, Any]:
        with Writer(folder, dtype) as writer:
            for texts in _batches(parts(group)):
                _encode(texts, tokenizer, writer)
        return writer.about

    def parts(group: Sequence[Path]) -> Iterator[Part]:
        for path in group:
            with bar.open(path, "rb", total=total, task_id=shown) as file:
                yield from read(path, file)

    made_how = made_how | {"tokenizer": known}
    with bar:
        return [
            read_tokens(entry(group, made_how, partial(make, group)), called(group))
            for group in _groups(paths)
        ]


def _groups(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Files that become one entry: many small ones, or a large one alone."""
    group: list[Path] = []
    size = 0
    for path in paths:
        group.append(path)
        size += path.stat().st_size
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts nor fills up, as some are told to."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _encode(parts: list[Part], tokenizer: Tokenizer, writer: Writer) -> None:
    heads = [part.head for part in parts if part.head is not None]
    tails = [part.tail for part in parts]
    head_ids = iter(tokenizer.encode_batch_fast(heads))
    tail_ids = tokenizer.encode_batch_fast(tails, add_special_tokens=False)
    for part, tail in zip(parts, tail_ids, strict=True):
        if part.head is not None:
            ids = next(head_ids).ids
            writer.add(ids, len(ids) if part.prompt else 0)
        writer.add(tail.ids)
        if part.ends:
            writer.end()


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.head or "") + len(part.tail)
        if len(batch) == TEXTS or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
