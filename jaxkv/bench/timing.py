"""How long a function takes on the device, without what the host adds."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

RUNS = 7


def median_seconds(run: Callable[[], Any], runs: int = RUNS) -> float:
    """Of a call that has run before, to the end of its work on the device."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def seconds_a_call(
    step: Callable[[Any, Any], Any], carry: Any, turns: Sequence[Any], rounds: int
) -> float:
    """Of carry = step(carry, one of `turns`), many calls in one program.

    Each needs the one before, and they read different arrays in turn, so that a cache
    of the device holds none of them; the program's own start is one of many.
    """

    @jax.jit
    def run(carry, turns):
        def one_round(_, carry):
            for arrays in turns:
                carry = step(carry, arrays)
            return carry

        return jax.lax.fori_loop(0, rounds, one_round, carry)

    return median_seconds(lambda: run(carry, list(turns))) / (rounds * len(turns))
