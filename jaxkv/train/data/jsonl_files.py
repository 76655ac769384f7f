"""JSONL files: one document a line, a text or a prompt and its answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grain

from jaxkv.train.data.encode import Part, encoded
from jaxkv.train.data.files import find
from jaxkv.train.data.packing import packed
from jaxkv.train.data.source import Opening, Source

MESSAGES = "messages"


@dataclass(frozen=True)
class JsonlFiles(Source):
    """Lines that are JSON objects, with a text, or with a prompt and an answer.

    `paths` are paths and globs; `text`, `prompt` and `answer` are the names of fields.
    A prompt weighs 0 as a target and its answer 1. The two are tokenized apart and
    joined as they stand, so an answer begins with the white space that it needs. `end`
    is put after every document, such as the tokenizer's "</s>". Blank lines are passed
    over. A text longer than a row is cut into several segments; a prompt and an answer
    longer than a row are left out, and how many were is told.

    Lists of messages are refused: a tokenizer.json holds no template for them. Write
    them out as a prompt and an answer.

    Files are tokenized when they are first used, so a faulty line is found before the
    first step; their tokens are kept (`jaxkv.train.data.store`).

    Example:
      >>> JsonlFiles(("pairs.jsonl",), prompt="question", end="</s>").answer
      'answer'

    Raises ValueError, when it is opened, naming file and line, for a line that is not
    such an object; and for a path without a file, and where there is no document.
    """

    paths: tuple[str, ...]
    text: str = "text"
    prompt: str = "prompt"
    answer: str = "answer"
    end: str = ""

    def files(self) -> tuple[Path, ...]:
        """The files of `paths`."""
        return find(self.paths)

    def rows(self, opening: Opening) -> grain.MapDataset:
        """The rows of all files together."""
        paths = self.files()
        fields = [self.text, self.prompt, self.answer]
        made_how = {"jsonl": fields, "end": self.end}
        files = encoded(paths, opening, made_how, self._parts)
        return packed(files, paths, opening)

    def _parts(self, path: Path, file: BinaryIO) -> Iterator[Part]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield self._part(line, f"{path}, line {number}")

    def _part(self, line: bytes, where: str) -> Part:
        row = _object(line, where)
        if self.text in row:
            return Part(_string(row, self.text, where), self.end)
        if self.prompt in row and self.answer in row:
            answer = _string(row, self.answer, where)
            return Part(
                _string(row, self.prompt, where), answer + self.end, prompt=True
            )
        if MESSAGES in row:
            raise ValueError(
                f"{where}: the tokenizer has no template for messages; write them out "
                f"as {self.prompt!r} and {self.answer!r}."
            )
        raise ValueError(
            f"{where}: it has no field {self.text!r}, nor {self.prompt!r} and "
            f"{self.answer!r}; correct it, or name the fields that it has."
        )


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: it is not JSON ({error}); correct or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: it is not an object; write fields in braces.")
    return row


def _string(row: dict[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: {field!r} is not a string that says something; correct or "
            "remove the line."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: {field!r} holds half of a surrogate pair; correct or remove the "
            "line."
        ) from None
    return value
