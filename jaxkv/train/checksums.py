"""Checksums of a checkpoint's files, written last: without them it is not whole.

Orbax commits a checkpoint by a rename, and OCDBT has a checksum in every node of its
index, but none of the arrays' bytes: a flipped bit there is read as it lies. So each
process hashes what it wrote, when Orbax has committed, into a file of its own:

    sha256.PART-of-PARTS.json   {path inside the checkpoint: 64 hex digits}

A file in a folder `ocdbt.process_I` is process I's, the others are process 0's.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"sha256\.(\d+)-of-(\d+)\.json")
OWNER = re.compile(r"(?:^|/)ocdbt\.process_(\d+)/")


def seal(folder: Path, part: int, parts: int) -> None:
    """Writes the checksums of what process `part` of `parts` wrote."""
    mine = {
        name: digest(folder / name) for name in _files(folder) if _owner(name) == part
    }
    beside = folder / f".sha256.{part}"
    beside.write_text(json.dumps(mine, indent=1) + "\n")
    beside.replace(folder / f"sha256.{part}-of-{parts}.json")


def is_sealed(folder: Path) -> bool:
    """Whether every process wrote its checksums."""
    found = [match.groups() for match in map(NAME.fullmatch, _names(folder)) if match]
    return bool(found) and len(found) == int(found[0][1])


def damaged(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """The first file that is not as it was written; None where all are.

    Of every `parts` files only one is read, the one after `part` others.
    """
    written: dict[str, str] = {}
    for name in filter(NAME.fullmatch, _names(folder)):
        try:
            written |= json.loads((folder / name).read_text())
        except (ValueError, TypeError):
            return name
    for name in sorted(written)[part::parts]:
        if not (folder / name).is_file() or digest(folder / name) != written[name]:
            return name
    return None


def digest(file: Path) -> str:
    """64 hex digits of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _files(folder: Path) -> Iterator[str]:
    """Of the checkpoint itself, by their paths in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "sha256." not in path.name:
            yield path.relative_to(folder).as_posix()


def _owner(name: str) -> int:
    inside = OWNER.search(name)
    return int(inside.group(1)) if inside else 0
