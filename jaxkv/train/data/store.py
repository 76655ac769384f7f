"""Token files as rows read them, and the folder where what is made of data is kept.

    $JAXKV_TOKENS, or jaxkv/tokens in $XDG_CACHE_HOME or ~/.cache

Each entry is a folder, named by the hash of what it was made of: of files their path,
size, time of change and `digest`, and all that their reader was told. Whatever differs
makes another entry, so an entry never grows old; any may be removed at any time. Every
process makes what it does not find.
"""

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Integer

from jaxkv.folders import user_folder
from jaxkv.train.data.files import called, digest

FORMAT = 1
"""Of an entry; another number makes all anew."""

TOKENS, ENDS, PROMPTS, ABOUT = "tokens.bin", "ends.npy", "prompts.npy", "about.json"

MAPS = 64
"""Files that are mapped at once: each takes one of the files a process may open."""


@dataclass(frozen=True)
class Tokens:
    """A file of nothing but ids from the byte `offset` on, and the documents in it.

    They end before `ends` and begin with `prompts` tokens of a prompt. `largest` is the
    largest id, -1 where there is none; `name` says where the data came from.
    """

    name: str
    file: Path
    dtype: np.dtype
    offset: int
    ends: Int[np.ndarray, " D"]
    prompts: Int[np.ndarray, " D"]
    largest: int

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, size: int) -> Integer[np.ndarray, " X"]:
        """Some of the tokens, mapped."""
        return mapped(self.file, self.dtype, self.offset, self.size)[
            start : start + size
        ]


@lru_cache(MAPS)
def mapped(
    file: Path, dtype: np.dtype, offset: int, size: int
) -> Integer[np.ndarray, " X"]:
    """`size` whole numbers in a file; one of none cannot be mapped."""
    if not size:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype, mode="r", offset=offset, shape=(size,))


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


def read_tokens(folder: Path, name: str) -> Tokens:
    """What `Writer` wrote of what is called `name`.

    Raises:
      ValueError: the entry was cut short.
    """
    kept = about(folder)
    dtype = np.dtype(kept["dtype"])
    ends, prompts = np.load(folder / ENDS), np.load(folder / PROMPTS)
    size = int(ends[-1]) if len(ends) else 0
    if (folder / TOKENS).stat().st_size != size * dtype.itemsize:
        raise ValueError(f"{folder}: it is not whole; remove it, to have it made anew.")
    return Tokens(name, folder / TOKENS, dtype, 0, ends, prompts, kept["largest"])


def about(folder: Path) -> dict[str, Any]:
    """What is kept about an entry."""
    return json.loads((folder / ABOUT).read_text())


def entry(
    paths: Sequence[Path],
    made_how: dict[str, Any],
    make: Callable[[Path], dict[str, Any]],
) -> Path:
    """The folder kept of files and `made_how`; `make` fills it where there is none.

    `make` gets an empty folder and returns what is kept about it. Several processes may
    make the same entry at once: each makes it whole, and the first one's stays.

    Raises:
      ValueError: it cannot be written.
    """
    files = [
        [str(path.resolve()), path.stat().st_mtime_ns, digest(path)] for path in paths
    ]
    made_of = {"format": FORMAT, "files": files, **made_how}
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
            f"{kept}: the tokens of {called(paths)} cannot be kept there ({error}); "
            "free space, or give another folder in $JAXKV_TOKENS."
        ) from None
    return folder


def _put(beside: Path, folder: Path) -> None:
    try:
        os.replace(beside, folder)
    except OSError:
        if not (folder / ABOUT).is_file():  # else another process was faster
            raise
