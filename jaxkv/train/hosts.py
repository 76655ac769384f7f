"""Several processes as one run: joining, agreeing, and ending together.

A process joins by flags, or by what started it, as JAX finds out: a TPU pod, SLURM,
Open MPI, an indexed Job or JobSet of Kubernetes. Else it runs alone. When one process
dies, JAX's coordination service misses its heartbeats and aborts the others; that ends
them with a sentence here.
"""

import ctypes
import importlib.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkv.stopped import Stopped

HEARTBEAT = 25
"""Seconds without a sign of life after which a process counts as dead."""

LONGEST = 1000  # bytes of a sentence that process 0 sends the others
AGAIN = (
    "look at its log, and run the same command again in all: it goes on from the "
    "last checkpoint."
)


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Makes this process one of many where it was started so; before JAX is used.

    coordinator: HOST:PORT of process 0, reached by all. `processes` of 1 alone says
    that this process runs by itself, whatever started it.

    Raises:
      ValueError: some of the three are given without the others, or do not fit each
        other, or the processes do not find each other.
    """
    given = (coordinator, processes, process)
    if given == (None, 1, None) or (given == (None,) * 3 and starter() is None):
        return
    if given != (None,) * 3:
        _check(coordinator, processes, process)
    _end_on_abort()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=2 * HEARTBEAT,
        )
    except Exception as error:
        how = "--coordinator" if coordinator else starter()
        raise ValueError(
            f"The processes that {how} names did not find each other "
            f"({_first_line(error)}); see that all run and reach the coordinator's "
            "port, or give --coordinator HOST:PORT --processes N --process I in each, "
            "or --processes 1 for one that runs alone."
        ) from None


def starter() -> str | None:
    """What started this process as one of many, None for none, by its environment."""
    have = os.environ.get
    if int(have("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        return "SLURM"
    if int(have("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    if have("JAX_PLATFORMS") != "cpu" and importlib.util.find_spec("libtpu"):
        hosts = have("TPU_PROCESS_ADDRESSES") or have("TPU_WORKER_HOSTNAMES")
        if int(have("MEGASCALE_NUM_SLICES") or 1) > 1 or "," in (hosts or ""):
            return "the TPU pod"
        chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
        if chips and hosts is None and "TPU_SKIP_MDS_QUERY" not in os.environ:
            return "the TPU VM"
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return "Kubernetes"
    return None


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def tell(line: str) -> None:
    """A line on stderr, from process 0."""
    if is_first():
        print(f"jaxkv: {line}", file=sys.stderr, flush=True)


def on_first(do: Callable[[], None]) -> None:
    """Runs `do` in process 0 while the others wait.

    Raises:
      ValueError: in every process, what `do` raised in process 0.
    """
    if jax.process_count() == 1:
        return do()
    said = ""
    if is_first():
        try:
            do()
        except (ValueError, OSError) as error:
            said = str(error)
    sent = np.zeros(LONGEST, np.uint8)
    encoded = np.frombuffer(said.encode()[:LONGEST], np.uint8)
    sent[: len(encoded)] = encoded
    heard = np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()
    if heard.strip(b"\0"):
        raise ValueError(heard.rstrip(b"\0").decode(errors="replace"))


def largest(number: int) -> int:
    """The largest of what the processes say."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


@contextmanager
def together() -> Iterator[None]:
    """Ends the process at once where it fails, if it is one of several.

    On its way out as usual it would wait for the others, which wait for it.
    """
    try:
        yield
    except BaseException as error:
        agreed = isinstance(error, Stopped) and error.code != 1
        if agreed or not jax.distributed.is_initialized():
            raise
        code = _say(error)
        sys.stdout.flush()
        if is_first():
            time.sleep(1)  # so that the others end of the same cause, not of our end
        os._exit(code)


def _say(error: BaseException) -> int:
    """Prints why this process ends; returns its exit code."""
    process = jax.process_index()
    if isinstance(error, ValueError | FloatingPointError | OSError | Stopped):
        if "Gloo" not in str(error):
            # What all of them raise is said once.
            said = f"process {process}: {' '.join(str(error).split())}"
            print(f"jaxkv: {said}", file=sys.stderr, flush=True)
            return error.code if isinstance(error, Stopped) else 2
    elif not isinstance(error, jax.errors.JaxRuntimeError | KeyboardInterrupt):
        traceback.print_exc()
        return 1
    print(
        f"jaxkv: process {process} cannot go on ({_first_line(error)}): most likely "
        f"another process died; {AGAIN}",
        file=sys.stderr,
        flush=True,
    )
    return 1


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            "--coordinator HOST:PORT, --processes N and --process I are given together."
        )
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator {coordinator}: give HOST:PORT.")
    if not 0 <= process < processes:
        raise ValueError(
            f"--process {process} of --processes {processes}: give one of 0 to "
            f"{processes - 1}."
        )


def _end_on_abort() -> None:
    """Has JAX's abort say a sentence last and end with code 1, without a core dump.

    JAX lets nothing else be done when the coordination service tells of a dead process:
    the callback that it would take cannot be a function of Python. abort() raises its
    signal in the thread that calls it, which holds none of Python's locks.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)


def _end(_: int) -> None:
    os.write(2, f"jaxkv: another process died, so this one ends; {AGAIN}\n".encode())
    os._exit(1)


_ABORTED = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
