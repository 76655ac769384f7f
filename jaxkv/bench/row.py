"""What came of timing one op at one size, and what all ops' timings share."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

IN_TURN = 1 << 30  # bytes that are read in turn, so that no cache holds them
MOST_TURNS = 16
CALLS = 400  # in one program, whose own start takes a millisecond
LONGEST = 0.1  # seconds that the calls of one program should take
SLOWER = 10  # times the floor, which the XLA paths may take
HUGE = 1e30
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


def rounds(seconds: float, turns: int) -> int:
    """How often all arrays are read in one program, if a call takes so long."""
    calls = ON_CPU if cpu() else min(CALLS, int(LONGEST / seconds))
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


def after(number, integers):
    """The integers, but only once a number is there, so that calls wait in a loop."""
    return integers + (number.astype(jnp.float32) > HUGE).astype(jnp.int32)
