"""Token files as rows read them, and the folder where what is made of data is kept.

    $JAXKV_TOKENS, or jaxkv/tokens in $XDG_CACHE_HOME or ~/.cache

Each entry is a folder, named by the hash of what it was made of: of a file its path,
size, time of change and `digest`, and all that its reader was told. Whatever differs
makes another entry, so an entry never grows old; any may be removed at any time.
"""

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Integer

from jaxkv.folders import user_folder
from jaxkv.train.data.files import digest

FORMAT = 1
"""Of an entry; another number makes all anew."""

TOKENS, ENDS, PROMPTS, ABOUT = "tokens.bin", "ends.npy", "prompts.npy", "about.json"


@dataclass(frozen=True)
class Tokens:
    """The tokens of one file: documents end before `ends`, and begin with a prompt.

    `tokens` is mapped, not read; `prompts` are lengths, 0 where there is none, and
    `largest` is the largest id (-1 where there is no token).
    """

    path: Path
    tokens: Integer[np.ndarray, " X"]
    ends: Int[np.ndarray, " D"]
    prompts: Int[np.ndarray, " D"]
    largest: int


class Writer:
    """Writes an entry's tokens as they come; its index when it is left."""

    def __init__(self, folder: Path, dtype: type[np.unsignedinteger]) -> None:
        self._folder, self._dtype = folder, dtype
        self._file: BinaryIO = (folder / TOKENS).open("wb")
        self._ends, self._prompts = array("q"), array("q")
        self._written, self._prompt, self._largest = 0, 0, -1

    def add(self, ids: Sequence[int], prompt: int = 0) -> None:
        """More tokens of the document at hand, and how many begin it as a prompt."""
        if ids:
            self._file.write(np.array(ids, self._dtype).tobytes())
            self._written += len(ids)
            self._largest = max(self._largest, max(ids))
        self._prompt += prompt

    def end(self) -> None:
        """The document at hand ends; one without a token is none."""
        if self._written > (self._ends[-1] if self._ends else 0):
            self._ends.append(self._written)
            self._prompts.append(self._prompt)
        self._prompt = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        np.save(self._folder / ENDS, np.array(self._ends, np.int64))
        np.save(self._folder / PROMPTS, np.array(self._prompts, np.int64))

    @property
    def about(self) -> dict[str, Any]:
        """What `read_tokens` asks of `about`."""
        return {"dtype": np.dtype(self._dtype).name, "largest": self._largest}


def read_tokens(folder: Path, path: Path) -> Tokens:
    """What `Writer` wrote of the file `path`.

    Raises:
      ValueError: the entry was cut short.
    """
    kept = about(folder)
    dtype = np.dtype(kept["dtype"])
    ends, prompts = np.load(folder / ENDS), np.load(folder / PROMPTS)
    size = int(ends[-1]) if len(ends) else 0
    if (folder / TOKENS).stat().st_size != size * dtype.itemsize:
        raise ValueError(f"{folder}: it is not whole; remove it, to have it made anew.")
    tokens = map_file(folder / TOKENS, dtype, size)
    return Tokens(path, tokens, ends, prompts, kept["largest"])


def about(folder: Path) -> dict[str, Any]:
    """What is kept about an entry."""
    return json.loads((folder / ABOUT).read_text())


def map_file(path: Path, dtype: np.dtype, size: int) -> Integer[np.ndarray, " X"]:
    """A flat file of `size` whole numbers, mapped; an empty one cannot be."""
    if not size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", shape=(size,))


def entry(
    path: Path, made_how: dict[str, Any], make: Callable[[Path], dict[str, Any]]
) -> Path:
    """The folder kept of `path` and `made_how`; `make` fills it where there is none.

    `make` gets an empty folder and returns what is kept about it. Several processes may
    make the same entry at once: each makes it whole, and the first one's stays.

    Raises:
      ValueError: it cannot be written.
    """
    stat = path.stat()
    made_of = {
        "format": FORMAT,
        "path": str(path.resolve()),
        "bytes": stat.st_size,
        "changed": stat.st_mtime_ns,
        "sha256": digest(path),
        **made_how,
    }
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    kept = user_folder("JAXKV_TOKENS", "tokens")
    folder = kept / name
    if (folder / ABOUT).is_file():
        return folder
    try:
        kept.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=kept))
        try:
            text = json.dumps(make(beside) | {"made_of": made_of}, indent=2)
            (beside / ABOUT).write_text(text + "\n")
            _put(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"{kept}: the tokens of {path} cannot be kept there ({error}); free space, "
            "or give another folder in $JAXKV_TOKENS."
        ) from None
    return folder


def _put(beside: Path, folder: Path) -> None:
    try:
        os.replace(beside, folder)
    except OSError:
        if not (folder / ABOUT).is_file():  # else another process was faster
            raise
