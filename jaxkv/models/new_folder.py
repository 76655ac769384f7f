"""A new folder, written beside its place and renamed: there whole or not at all."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from jaxkv.full_disk import reason

PAUSE = 0.1  # seconds between looks at a folder that is to stay away, for so many
QUIET, TRIES = 20, 200  # looks in a row, and in all


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder beside `path` to write into, which is at `path` once all is written.

    Raises ValueError where something is at `path`, and OSError, one sentence too, where
    it cannot be written; nothing is then left.
    """
    path = Path(path).resolve()
    refuse_to_overwrite(path)
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        beside.chmod(0o755)
        yield beside
        os.replace(beside, path)
        beside = None
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path}: the folder cannot be written there ({reason(error)}); give one "
            "on a disk that has room and that you may write to."
        ) from None
    finally:
        if beside is not None:
            _remove(beside)


def _remove(folder: Path) -> None:
    """Until it stays away: a save that failed may have threads that still write."""
    quiet = 0
    for _ in range(TRIES):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            quiet = 0
        quiet += 1
        if quiet > QUIET:
            return
        time.sleep(PAUSE)


def refuse_to_overwrite(path: Path) -> None:
    """Raises ValueError where something is that `save` would not replace."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path}: it already exists; remove it or give another path.")
