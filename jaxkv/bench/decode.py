"""What the decode ops' timings share: held to another path first, then timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxkv.bench import row
from jaxkv.bench.floor import Speed
from jaxkv.bench.row import Row
from jaxkv.bench.timing import seconds_a_call

CLOSE = {"bfloat16": 1e-2, "float32": 1e-4}  # of the largest output
CLOSE_LSE = 1e-4


@runtime_checkable  # shapes and types are checked as tests run
class Case(Protocol):
    """A cache of `batch` sequences with `slots` slots a head, on average."""

    @property
    def name(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def slots(self) -> int: ...


@dataclass(frozen=True)
class Decode:
    """An op, as a function of queries and a pool: as dispatched, and through XLA.

    again: the next queries, of what came out and those before, so that calls wait for
    each other.
    """

    name: str
    ours: Callable[[Any, Any], Any]
    xla: Callable[[Any, Any], Any]
    again: Callable[[Any, Any], Any]

    def hold(self, ours: Any, theirs: Any) -> None:
        """Raises FloatingPointError where results differ."""
        (out, lse, _), (other, other_lse, _) = ours, theirs
        close = CLOSE[jnp.dtype(out.dtype).name]
        row.hold(self.name, out=(out, other, close), lse=(lse, other_lse, CLOSE_LSE))

    def measure(
        self,
        case: Case,
        q: jax.Array,
        pools: Sequence[Any],
        size: int,
        flops: int,
        speed: Speed,
        peer: float | None,
    ) -> Row:
        """Of a call that reads `size` bytes; the pools are read in turn."""
        self.hold(jax.jit(self.ours)(q, pools[0]), jax.jit(self.xla)(q, pools[0]))
        floor = speed.floor(size, flops)
        seconds = partial(self._seconds, q, pools)
        return Row(
            op=self.name,
            case=case.name,
            batch=case.batch,
            slots=case.slots,
            seconds=seconds(self.ours, floor),
            bytes=size,
            flops=flops,
            floor=floor,
            xla=seconds(self.xla, row.SLOWER * floor),
            peer=peer,
        )

    def _seconds(self, q, pools, path, likely: float) -> float:
        def step(q, pool):
            return self.again(path(q, pool)[0], q)

        return seconds_a_call(step, q, pools, row.rounds(likely, len(pools)))
