"""Token files: flat arrays of ids on disk, made by whatever tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from jaxtyping import Integer
from rich.progress import track

from jaxkv.train.data.files import find
from jaxkv.train.data.packing import packed
from jaxkv.train.data.source import Opening, Source
from jaxkv.train.data.store import ENDS, Tokens, about, entry, mapped

CHUNK = 1 << 24
"""Tokens looked at at once."""


@dataclass(frozen=True)
class TokenFiles(Source):
    """Documents in flat files of token ids.

    `paths` are paths and globs: of .npy files of one axis of whole numbers, or of any
    other files of nothing but ids of `dtype` in the machine's byte order. `boundary` is
    the id that ends a document and belongs to it, or begins one where `begins`; without
    it a file is one document. A document longer than a row is cut into several
    segments.

    Files are mapped, not read; each is looked through once for its boundaries and its
    largest id, which are kept (`jaxkv.train.data.store`).

    Example:
      >>> TokenFiles(("tokens/*.bin",), dtype="uint32", boundary=2).begins
      False

    Raises ValueError, when it is opened, for a path without a file, a file that is no
    whole number of ids, an id outside the vocabulary, and where there is no document.
    """

    paths: tuple[str, ...]
    dtype: Literal["uint16", "uint32"] = "uint16"
    boundary: int | None = None
    begins: bool = False

    def files(self) -> tuple[Path, ...]:
        """The files of `paths`."""
        return find(self.paths)

    def rows(self, opening: Opening) -> grain.MapDataset:
        """The rows of all files together."""
        paths = self.files()
        mapped.cache_clear()  # a file may have been put in another's place
        return packed([self._tokens(path, opening) for path in paths], paths, opening)

    def _tokens(self, path: Path, opening: Opening) -> Tokens:
        read = _read_npy if path.suffix == ".npy" else _read_flat
        tokens, offset = read(path, np.dtype(self.dtype))
        made_how = {
            "tokens": tokens.dtype.name,
            "boundary": self.boundary,
            "begins": self.begins,
        }
        make = partial(self._index, path, tokens, opening)
        folder = entry([path], made_how, make)
        ends, largest = np.load(folder / ENDS), about(folder)["largest"]
        prompts = np.zeros_like(ends)
        return Tokens(str(path), path, tokens.dtype, offset, ends, prompts, largest)

    def _index(
        self,
        path: Path,
        tokens: Integer[np.ndarray, " X"],
        opening: Opening,
        folder: Path,
    ) -> dict[str, Any]:
        found, largest = [np.zeros(0, np.int64)], -1
        for start, chunk in _chunks(path, tokens, opening):
            if chunk.min() < 0:
                raise ValueError(
                    f"{path}: token id {chunk.min()} is below 0; ids begin at 0."
                )
            largest = max(largest, int(chunk.max()))
            if self.boundary is not None:
                at = np.flatnonzero(chunk == self.boundary)
                found.append(at + start + (0 if self.begins else 1))
        ends = np.unique(np.concatenate([*found, np.array([len(tokens)])]))
        np.save(folder / ENDS, ends[ends > 0])
        return {"largest": largest}


def _chunks(
    path: Path, tokens: Integer[np.ndarray, " X"], opening: Opening
) -> Iterator[tuple[int, Integer[np.ndarray, " X"]]]:
    """(where it begins, some tokens on end)."""
    for start in track(
        range(0, len(tokens), CHUNK),
        f"documents of {path.name}",
        console=opening.console,
        transient=True,
        disable=not opening.shows(tokens.nbytes),
    ):
        yield start, tokens[start : start + CHUNK]


def _read_flat(path: Path, dtype: np.dtype) -> tuple[Integer[np.ndarray, " X"], int]:
    """(a file's tokens, at which byte they begin)."""
    size, left = divmod(path.stat().st_size, dtype.itemsize)
    if left:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes are no whole number of {dtype.name} "
            "ids; give the right dtype, or copy the file again."
        )
    return mapped(path, dtype, 0, size), 0


def _read_npy(path: Path, dtype: np.dtype) -> tuple[Integer[np.ndarray, " X"], int]:
    """(a .npy file's tokens, of the dtype in its header, where they begin)."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: it is no whole .npy file ({error}); copy it again."
        ) from None
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{path}: it holds {tokens.dtype.name} {list(tokens.shape)}, not one axis "
            "of token ids; save it so."
        )
    return tokens, tokens.offset
