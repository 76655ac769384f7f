"""Stopping: whether SIGTERM asks the run to end, with one answer in all processes."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopping:
    """Notes SIGTERM while it is entered.

    Among several processes JAX's preemption service notes it, and has all of them stop
    after the same step.
    """

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None
        here = threading.current_thread() is threading.main_thread()
        self._listens = here and jax.process_count() == 1

    def __enter__(self) -> "Stopping":
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def after(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; asked once after each."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def _note(self, *_: object) -> None:
        self._noted = True
