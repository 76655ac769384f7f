"""Text to tokens, once: what is in a file becomes an entry of the store.

Texts go to the tokenizer many at a time, which it encodes on all cores.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from rich.progress import open as open_with_progress
from tokenizers import Tokenizer

from jaxkv.train.data.source import Opening
from jaxkv.train.data.store import Tokens, Writer, entry, read_tokens

TEXTS, CHARACTERS = 4096, 4 << 20
"""Go to the tokenizer at once, at most."""


class Part(NamedTuple):
    """Text of a document: `head`, encoded with special tokens, and `tail`, without.

    `head` is None where a document goes on, and is its prompt if `prompt`.
    """

    head: str | None
    tail: str = ""
    prompt: bool = False
    ends: bool = True


def encoded_file(
    path: Path,
    opening: Opening,
    made_how: dict[str, Any],
    read: Callable[[BinaryIO], Iterator[Part]],
) -> Tokens:
    """The tokens of the parts that `read` yields of a file; kept, and made once.

    `made_how` is JSON and says all that `read` depends on besides the file.

    Raises:
      ValueError: there is no tokenizer, or what `read` raises.
    """
    if opening.tokenizer is None:
        raise ValueError(
            f"{path}: text needs a tokenizer, and the model has none; give one with a "
            "tokenizer.json, or TokenFiles."
        )
    described = opening.tokenizer.to_str()
    tokenizer = Tokenizer.from_str(described)  # an own one, to be changed
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = hashlib.sha256(described.encode()).hexdigest()

    def make(folder: Path) -> dict[str, Any]:
        small = tokenizer.get_vocab_size() <= 1 << 16
        dtype = np.uint16 if small else np.uint32
        opened = open_with_progress(
            path,
            "rb",
            description=f"tokens of {path.name}",
            console=opening.console,
            transient=True,
            disable=not opening.shows(path),
        )
        with (
            opened as file,
            Writer(folder, dtype) as writer,
        ):
            for group in _groups(read(file)):
                _encode(group, tokenizer, writer)
        return writer.about

    return read_tokens(entry(path, made_how | {"tokenizer": known}, make), path)


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


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part.head or "") + len(part.tail)
        if len(group) == TEXTS or size >= CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
