"""Reads safetensors files: one tensor, or one slice of it, at a time.

A file is an 8-byte little-endian length, a JSON header of that length, then the bytes
of the tensors. The header is checked whole before any of them is used. A tensor is a
slice of a memory map: a host touches only the pages it asks for. Nothing is executed.

Format: https://huggingface.co/docs/safetensors
"""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import EllipsisType
from typing import TypeGuard

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library itself
AGAIN = "download or save the file again"

Index = EllipsisType | slice | int | tuple[EllipsisType | slice | int, ...]


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes [begin, end) after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """One .safetensors file, memory-mapped; `metadata` has the header's own texts.

    Raises ValueError, naming the file and the tensor, for what does not add up.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._start, header = _read_header(self.path)
        self.metadata = _metadata(self.path, header.get("__metadata__", {}))
        size = self.path.stat().st_size - self._start
        self._entries = {
            name: _entry(self.path, name, fields)
            for name, fields in header.items()
            if name != "__metadata__"
        }
        _check_layout(self.path, self._entries, size)
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the file, in the header's order."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype, from the header alone."""
        return self._find(name).dtype

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """tensor[index] as a fresh array; only the pages under it are read."""
        entry = self._find(name)
        flat = np.frombuffer(
            self._map, entry.dtype, prod(entry.shape), self._start + entry.begin
        )
        return np.array(flat.reshape(entry.shape)[index])

    def _find(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(
                f"{self.path}: it has no tensor {name!r}; "
                "check that the file belongs to this model."
            )
        return self._entries[name]


class TensorFolder:
    """The tensors of a model folder: model.safetensors, or shards under an index.

    It answers as a TensorFile does; `file(name)` says which file holds a tensor. What
    it does not hold itself is read from its base, if it has one.
    """

    def __init__(
        self, path: str | os.PathLike, base: "TensorFolder | None" = None
    ) -> None:
        self.path = Path(path)
        self._base = base
        if (self.path / SINGLE).is_file():
            whole = TensorFile(self.path / SINGLE)
            self._files = dict.fromkeys(whole.names, whole)
        elif (self.path / INDEX).is_file():
            self._files = _open_shards(self.path)
        else:
            raise ValueError(
                f"{self.path}: it has neither {SINGLE} nor {INDEX}; "
                "give a folder whose weights are safetensors."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the folder itself."""
        return tuple(self._files)

    def file(self, name: str) -> TensorFile:
        """The file that holds a tensor."""
        if name not in self._files and self._base is not None:
            return self._base.file(name)
        if name not in self._files:
            raise ValueError(
                f"{self.path}: no file of it holds the tensor {name!r}; "
                "check that config.json and the weights belong together."
            )
        return self._files[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self.file(name).shape(name)

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype, from the header alone."""
        return self.file(name).dtype(name)

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """tensor[index] as a fresh array."""
        return self.file(name).read(name, index)


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError if it is anything else."""
    return _parse_object(path, path.read_bytes(), "the file")


def _read_header(path: Path) -> tuple[int, dict]:
    """(where the tensors' bytes start, the header)."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise ValueError(
                f"{path}: {size} bytes are too short for a safetensors header; {AGAIN}."
            )
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{path}: the header claims {length} bytes, longer than the file "
                f"({size} bytes) or the format's limit ({LONGEST_HEADER}); {AGAIN}."
            )
        return 8 + length, _parse_object(path, file.read(length), "the header")


def _parse_object(path: Path, text: bytes, what: str) -> dict:
    def unique(pairs: list) -> dict:
        found: dict = {}
        for key, value in pairs:
            if key in found:
                raise KeyError(key)
            found[key] = value
        return found

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except KeyError as error:
        raise ValueError(
            f"{path}: {what} names {error.args[0]!r} twice; {AGAIN}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {what} is not JSON ({error}); {AGAIN}.") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{path}: {what} is not a JSON object; {AGAIN}.")
    return parsed


def _metadata(path: Path, found: object) -> dict[str, str]:
    """The header's own texts, by name."""
    if not isinstance(found, dict) or not all(type(v) is str for v in found.values()):
        raise ValueError(f"{path}: the header's metadata is not all text; {AGAIN}.")
    return found


def _entry(path: Path, name: str, fields: object) -> Entry:
    """One checked header entry: dtype, whole sizes, bytes that match the shape."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is described by no JSON object; {AGAIN}.")
    dtype, shape, offsets = map(fields.get, ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{where} has the unknown dtype {dtype!r}; convert it to one of "
            f"{', '.join(DTYPES)}."
        )
    if not _sizes(shape):
        raise ValueError(f"{where} has the impossible shape {shape!r}; {AGAIN}.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where} has the impossible offsets {offsets!r}; {AGAIN}.")
    begin, end = offsets
    bytes_needed = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != bytes_needed:
        raise ValueError(
            f"{where} has {end - begin} bytes where its shape {shape} of {dtype} "
            f"needs {bytes_needed}; {AGAIN}."
        )
    return Entry(DTYPES[dtype], tuple(shape), begin, end)


def _sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of whole numbers, none negative."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_layout(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """The tensors must tile the bytes after the header: no overlap, gap or excess."""
    reached = 0
    for name, entry in sorted(
        entries.items(), key=lambda item: (item[1].begin, item[1].end)
    ):
        where = f"{path}: tensor {name!r}"
        if entry.end > size:
            raise ValueError(
                f"{where} ends at byte {entry.end}, out of range of the {size} bytes "
                f"of data: the file is cut short; {AGAIN}."
            )
        if entry.begin < reached:
            raise ValueError(f"{where} overlaps the tensor before it; {AGAIN}.")
        if entry.begin > reached:
            raise ValueError(
                f"{where} leaves a gap of {entry.begin - reached} bytes before it; "
                f"{AGAIN}."
            )
        reached = entry.end
    if reached != size:
        raise ValueError(
            f"{path}: {size - reached} bytes after the last tensor are a gap that "
            f"belongs to no tensor; {AGAIN}."
        )


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: it has no weight_map of tensors; {AGAIN}.")
    files: dict[str, TensorFile] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not _plain(shard):
            raise ValueError(
                f"{index}: tensor {name!r} is said to lie in {shard!r}, which is not a "
                "plain .safetensors file name; do not load this folder."
            )
        if shard not in files:
            files[shard] = TensorFile(folder / shard)
        files[shard].shape(name)
    return {name: files[shard] for name, shard in places.items()}


def _plain(name: str) -> bool:
    """A file name with no folder in it, whatever the system's separator."""
    return name.endswith(".safetensors") and not set(name) & set("/\\:\0")
