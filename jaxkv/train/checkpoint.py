"""Checkpoints of a training run: Orbax v1, one flat dict of arrays a step.

The state's tree is flattened to {path: array}, so that a file depends on no class of
Flax or Optax, and is restored onto the shapes and shardings of the state that asks for
it.
"""

from pathlib import Path

import jax
from jaxtyping import Array, PyTree
from orbax.checkpoint import v1 as ocp

KEPT = 2


class Checkpoints:
    """The checkpoints in a folder; the last two are kept.

    Example:
      >>> with Checkpoints(folder) as saved:
      ...     step, state = saved.restore(state)
      ...     saved.save(step + 1, state)
    """

    def __init__(self, folder: Path) -> None:
        newest = ocp.training.preservation_policies.LatestN(KEPT)
        self._files = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=newest, cleanup_tmp_directories=True
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def step(self) -> int:
        """The last step that is saved whole; 0 when none is."""
        latest = self._files.latest
        return 0 if latest is None else latest.step

    def save(self, step: int, state: PyTree[Array]) -> None:
        """Saves `state` as of `step`, once; returns when it is written."""
        if step > self.step:
            self._files.save(step, _flat(state), force=True)

    def restore(self, state: PyTree[Array]) -> tuple[int, PyTree[Array]]:
        """(step, state) as last saved; (0, `state`) when nothing is."""
        step = self.step
        if not step:
            return 0, state
        flat = self._files.load(step, _flat(state))
        return step, jax.tree.structure(state).unflatten(
            [flat[name] for name in _flat(state)]
        )


def _flat(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
