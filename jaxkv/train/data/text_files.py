"""Text files: a file is one document, or what stands between separators is."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

import grain

from jaxkv.train.data.encode import Part, encoded
from jaxkv.train.data.files import find
from jaxkv.train.data.packing import packed
from jaxkv.train.data.source import Opening, Source

CHUNK = 1 << 20
"""Characters read at once, and encoded at once of a longer document: one is cut at
white space after so many, where its tokens may differ from those of the whole."""


@dataclass(frozen=True)
class TextFiles(Source):
    """Documents in UTF-8 text files.

    `paths` are paths and globs. `separator` stands between documents; without it a file
    is one. `end` is put after every document, such as the tokenizer's "</s>"; what the
    tokenizer itself puts before a text, as <bos>, goes before every document. Blank
    documents are none. A document longer than a row is cut into several segments.

    A file is tokenized when it is first used, never read whole into memory, and its
    tokens are kept (`jaxkv.train.data.store`).

    Example:
      >>> TextFiles(("books/**/*.txt",), separator="<|endoftext|>").separator
      '<|endoftext|>'

    Raises ValueError, when it is opened, for a path without a file, a file that is not
    UTF-8, and where there is no document.
    """

    paths: tuple[str, ...]
    separator: str | None = None
    end: str = ""

    def files(self) -> tuple[Path, ...]:
        """The files of `paths`."""
        return find(self.paths)

    def rows(self, opening: Opening) -> grain.MapDataset:
        """The rows of all files together."""
        paths = self.files()
        made_how = {"text": self.separator, "end": self.end}
        files = encoded(paths, opening, made_how, self._parts)
        return packed(files, paths, opening)

    def _parts(self, path: Path, file: BinaryIO) -> Iterator[Part]:
        text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from _documents(text, self.separator, self.end)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: it is not UTF-8 text ({error}); convert it."
            ) from None


def _documents(file: TextIOWrapper, separator: str | None, end: str) -> Iterator[Part]:
    rest, begins = "", True
    while chunk := file.read(CHUNK):
        *whole, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
        for text in whole:
            yield from _part(text, begins, end)
            begins = True
        if len(rest) > CHUNK:
            at = _cut(rest, len(separator or ""))
            text, rest = rest[:at], rest[at:]
            if not begins:
                yield Part(None, text, ends=False)
            elif text.strip():
                yield Part(text, ends=False)
                begins = False
    yield from _part(rest, begins, end)


def _part(text: str, begins: bool, end: str) -> Iterator[Part]:
    """The last part of a document; none where all of it is blank."""
    if not begins:
        yield Part(None, text + end)
    elif text.strip():
        yield Part(text, end)


def _cut(text: str, separator: int) -> int:
    """Where the last white space is that can be in no separator that only began."""
    last = len(text) - separator
    return next((i for i in range(last - 1, 0, -1) if text[i].isspace()), last)
