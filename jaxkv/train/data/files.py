"""The files of a source: finding them, and telling whether they changed.

A file's hash is sha256 of its size and its bytes: of all of them up to 4 MiB, and of 64
pieces of 64 KiB, the first and the last among them, spread evenly over a larger one. So
it costs a few milliseconds however large the file is, and misses a change that keeps
the size and lies between the pieces.
"""

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxkv.train.data.source import Source

WHOLE = 4 << 20
PIECE = 64 << 10
PIECES = WHOLE // PIECE

Fingerprint = dict[str, dict[str, int | str]]


def find(patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files of some paths and globs (`**` too), those of a glob by name.

    Raises ValueError where there is none, and for a folder.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{patterns}: give a tuple of paths, ({patterns!r},).")
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path]
        if not path.exists() and glob.has_magic(pattern):
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            matches = [match for match in matches if match.is_file()]
            if not matches:
                raise ValueError(f"{pattern}: no file matches; correct the pattern.")
        elif path.is_dir():
            raise ValueError(f"{pattern}: it is a folder; give a pattern of its files.")
        elif not path.is_file():
            raise ValueError(f"{pattern}: there is no such file; correct the path.")
        found |= dict.fromkeys(matches)
    return tuple(found)


def called(paths: Sequence[Path]) -> str:
    """The first of some files, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


def fingerprint(source: Source) -> Fingerprint:
    """{path: {"bytes", "sha256"}} of the source's files, to be stored in a checkpoint.

    What it can miss is said in `jaxkv.train.data.files`.
    """
    return {
        str(path): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in source.files()
    }


def check_unchanged(
    source: Source, stored: Mapping[str, Mapping[str, int | str]]
) -> None:
    """Raises ValueError, naming the file, if `source` is not as it was when stored.

    `stored` is an earlier `fingerprint` of it.
    """
    now = fingerprint(source)
    for name in {**stored, **now}:
        if stored.get(name) != now.get(name):
            raise ValueError(
                f"{name}: {_difference(stored.get(name), now.get(name))} since the "
                "checkpoint was saved; put the data back as they were, or begin a new "
                "run in another folder."
            )


def digest(path: Path) -> str:
    """64 hex digits of a file's size and of its bytes, all or some.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        hashed = hashlib.sha256(f"{size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                hashed.update(file.read())
            else:
                for i in range(PIECES):
                    file.seek((size - PIECE) * i // (PIECES - 1))
                    hashed.update(file.read(PIECE))
    except OSError as error:
        raise ValueError(
            f"{path}: it cannot be read ({error.strerror}); see to it that it can."
        ) from None
    return hashed.hexdigest()


def _difference(
    before: Mapping[str, int | str] | None, after: Mapping[str, int | str] | None
) -> str:
    if after is None:
        return "this file is gone from the source"
    if before is None:
        return "this file is new in the source"
    if before["bytes"] != after["bytes"]:
        return f"it changed from {before['bytes']} to {after['bytes']} bytes"
    return "its content changed"
