"""What came of timing one op at one size, and what all ops' timings share."""

from dataclasses import dataclass

import jax
import numpy as np

IN_TURN = 1 << 30  # bytes that are read in turn, so that no cache holds them
MOST_TURNS = 16
CALLS = 400  # in one program, whose own start takes a millisecond
LONGEST = 0.1  # seconds at the floor that the calls of one program may take
ON_CPU = 10


@dataclass(frozen=True)
class Row:
    """One case; times in seconds, of one call.

    slots: of a head, on average. floor: the least that the bytes and products can take.
    """

    op: str
    case: str
    batch: int
    slots: int
    seconds: float
    bytes: int
    flops: int
    floor: float
    xla: float | None = None
    peer: float | None = None


def cpu() -> bool:
    return jax.default_backend() == "cpu"


def turns(size: int) -> int:
    """How many arrays of `size` bytes are read in turn; on a CPU one."""
    return 1 if cpu() else max(1, min(MOST_TURNS, -(-IN_TURN // size)))


def rounds(floor: float, turns: int) -> int:
    """How often all of them are read in one program."""
    calls = ON_CPU if cpu() else min(CALLS, int(LONGEST / floor))
    return max(1, calls // turns)


def hold(op: str, **arrays: tuple) -> None:
    """Each name's (ours, what it is held to, by how much of its largest they differ).

    Raises:
      FloatingPointError: they differ by more.
    """
    for name, (mine, other, limit) in arrays.items():
        mine, other = (np.asarray(x, np.float32) for x in (mine, other))
        finite = np.isfinite(other)
        largest = np.abs(other[finite]).max(initial=0.0)
        same = (np.isfinite(mine) == finite).all()
        apart = np.abs(mine[finite] - other[finite]).max(initial=0.0)
        apart = apart if same else np.inf
        if apart > limit * largest:
            raise FloatingPointError(
                f"{op}: {name} differs from what it is held to by up to {apart:.3g}, "
                f"where the largest is {largest:.3g}; no time is given."
            )


def after(carry, arrays):
    """The arrays, but not before `carry` is there: calls in one loop are not merged."""
    return jax.lax.optimization_barrier((arrays, carry))[0]
