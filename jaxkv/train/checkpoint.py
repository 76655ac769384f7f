"""Checkpoints of a training run: Orbax v1, in the background, everything in one step.

A step's folder holds `state`, the state's tree as a flat dict {path: array}, so that it
depends on no class of Flax or Optax and is restored onto the shapes and shardings of
the state that asks for it, whatever mesh wrote it; in its metadata, as JSON, what else
the run depends on; and last the checksums of all files (`jaxkv.train.checksums`),
without which it is not whole.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, PyTree
from orbax.checkpoint import v1 as ocp

from jaxkv.full_disk import reason
from jaxkv.stopped import Stopped
from jaxkv.train import checksums, hosts

Run = dict[str, Any]
ASIDE = "damaged-"  # and the step: what a damaged checkpoint is renamed to


class Checkpoints:
    """The checkpoints in a folder: the last few, and every so manieth step for good.

    Entering clears away what was saved in part, and puts aside what is damaged; `step`
    is that of the newest whole one, 0 when there is none.

    Example:
      >>> with Checkpoints(folder) as saved:
      ...     step, state = saved.restore(state)
      ...     saved.save(step + 1, state)

    Raises:
      ValueError: there are checkpoints and all are damaged.
      Stopped: a save failed.
    """

    def __init__(
        self, folder: Path, keep_last: int = 2, keep_every: int | None = None
    ) -> None:
        self._folder = folder.absolute()
        self.step = _newest_whole(self._folder)
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep_last)]
        if keep_every is not None:
            kept.append(policies.EveryNSteps(keep_every))
        self._files = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._background = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future[None]] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.wait()
        except Stopped:
            if kind is None:
                raise
        finally:
            self._background.shutdown()

    def save(self, step: int, state: PyTree[Array], run: Run | None = None) -> None:
        """Saves `state` as of `step`, once; returns when it is copied to the host.

        It waits for an earlier save that is not yet written.
        """
        if step <= self.step:
            return
        self.wait()
        try:
            written = self._files.save_checkpointables_async(
                step, {"state": _flat(state)}, force=True, custom_metadata=run or {}
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self.step = step
        self._saving = step, self._background.submit(self._finish, step, written)

    def check(self) -> None:
        """Raises Stopped if the save in the background has failed; does not wait."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when all is written."""
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def restore(
        self, state: PyTree[Array], check: Callable[[Run], None] | None = None
    ) -> tuple[int, PyTree[Array]]:
        """(step, state) as last saved; (0, `state`) when nothing is.

        check: raises ValueError where what was saved besides is not this run's.

        Raises:
          ValueError: what was saved is another model's.
        """
        if not self.step:
            return 0, state
        about = self._files.checkpointables_metadata(self.step)
        if check is not None:
            check(about.custom_metadata)
        flat = _flat(state)
        self._fits(flat, about.metadata["state"])
        loaded = self._files.load_checkpointables(self.step, {"state": flat})["state"]
        leaves = [loaded[name] for name in flat]
        return self.step, jax.tree.structure(state).unflatten(leaves)

    def _finish(self, step: int, written: Any) -> None:
        written.result()
        part, parts = jax.process_index(), jax.process_count()
        checksums.seal(self._folder / str(step), part, parts)

    def _fits(self, flat: dict[str, Array], saved: dict[str, Any]) -> None:
        for name in {**flat, **saved}:
            mine, theirs = _shape(flat.get(name)), _shape(saved.get(name))
            if mine != theirs:
                raise ValueError(
                    f"{self._folder / str(self.step)} is a checkpoint of another "
                    f"model: {name} is {theirs} there and {mine} here; give the model "
                    "that it was saved of, or another --out."
                )

    def _failed(self, step: int, error: Exception) -> Stopped:
        before = [whole for whole in _steps(self._folder) if whole != step]
        again = f"from step {before[-1]}" if before else "from the beginning"
        return Stopped(
            f"Saving step {step} to {self._folder} failed ({reason(error)}); see to "
            "it that it can be written, and run the same command again: it goes on "
            f"{again}."
        )


def _newest_whole(folder: Path) -> int:
    """The step of the newest checkpoint that is as it was written; 0 for none."""
    hosts.on_first(partial(_clear, folder))
    faults: dict[int, str] = {}
    for step in reversed(_steps(folder)):
        fault = _damaged(folder / str(step))
        if fault is None:
            hosts.on_first(partial(_put_aside, folder, faults, step))
            return step
        faults[step] = fault
    for step, fault in faults.items():
        raise ValueError(
            f"{folder / str(step)} is damaged: {fault} is not as it was written, and "
            "no whole checkpoint is there besides; put back a copy of that file, or "
            "begin a new run in another folder."
        )
    return 0


def _damaged(folder: Path) -> str | None:
    """The damaged file that a process found, each of them reading its share."""
    part, parts = jax.process_index(), jax.process_count()
    fault = checksums.damaged(folder, part, parts)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    missing = len(names)
    place = -1 if fault is None else names.index(fault) if fault in names else missing
    place = hosts.largest(place)
    if place < 0:
        return None
    return names[place] if place < missing else fault or "a file that is missing"


def _put_aside(folder: Path, faults: dict[int, str], whole: int) -> None:
    for step, fault in faults.items():
        aside = folder / f"{ASIDE}{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(step)).replace(aside)
        hosts.tell(
            f"{folder / str(step)} is damaged ({fault} is not as it was written) and "
            f"is now {aside.name}; going on from step {whole}."
        )


def _clear(folder: Path) -> None:
    """Removes what a save that was cut short left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdecimal() and not checksums.is_sealed(path):
            shutil.rmtree(path)


def _steps(folder: Path) -> list[int]:
    """Of all checkpoints that were saved to their end."""
    found = folder.iterdir() if folder.is_dir() else ()
    steps = [path for path in found if path.name.isdecimal()]
    return sorted(int(path.name) for path in steps if checksums.is_sealed(path))


def _shape(x: Any) -> str:
    return "missing" if x is None else f"{x.dtype}{list(x.shape)}"


def _flat(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
