"""Single ops at the sizes of real decoding: right first, then timed.

ragged_decode: one query a sequence of a model with 32 query and 8 kv heads of 128.
What it reads lies in at least 1 GB of pools in turn, so that no cache holds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxkv.bench.floor import Speed
from jaxkv.bench.pools import random_pool
from jaxkv.bench.timing import seconds_a_call
from pallas_kernels.layout import page_slots
from pallas_kernels.ragged_decode import ragged_decode, reference, xla

K, G, H = 8, 4, 128
SPREAD = 1.5  # of a Dirichlet draw: heads from a tenth to three times the mean
IN_TURN = 1 << 30  # bytes
CALLS = 400  # in one program, whose own start takes a millisecond
ON_CPU = 10
CLOSE = {"bfloat16": 2e-2, "float32": 1e-4}


@dataclass(frozen=True)
class Case:
    """A cache of `batch` sequences with `slots` slots a head, or so many on average."""

    name: str
    batch: int
    slots: int
    ragged: bool = False

    def lengths(self) -> Int[np.ndarray, "B K"]:
        """Slots of each head; where ragged, as many in all as if they were alike."""
        if not self.ragged:
            return np.full((self.batch, K), self.slots)
        rng = np.random.default_rng(0)
        share = rng.dirichlet(np.full(K, SPREAD), self.batch)
        lengths = np.floor(share * self.slots * K).astype(int)
        lengths[:, 0] += self.slots * K - lengths.sum(axis=1)
        return lengths


CASES = (
    Case("full", 8, 32768),
    Case("full", 1, 131072),
    Case("full", 64, 4096),
    Case("a tenth kept", 8, 3277),
    Case("a tenth kept, heads differ", 8, 3277, ragged=True),
    Case("one page in 16 read", 8, 2048),
    Case("a tenth kept", 1, 3277),
)
SMALL = (  # where there is no accelerator
    Case("full", 2, 2048),
    Case("a tenth kept", 2, 205),
    Case("a tenth kept, heads differ", 2, 205, ragged=True),
)


@dataclass(frozen=True)
class Row:
    """What came of one case; times in seconds, of one call."""

    op: str
    case: str
    batch: int
    slots: int
    seconds: float
    bytes: int
    flops: int
    floor: float
    xla: float | None
    peer: float | None = None


def cases() -> tuple[Case, ...]:
    return SMALL if jax.default_backend() == "cpu" else CASES


def check_ragged_decode(dtype) -> None:
    """Holds the op to its definition on rows of odd lengths.

    Raises:
      FloatingPointError: they differ.
    """
    lengths = np.array([[0, 1, 63, 64, 65, 200, 0, 129]] * 2)
    pool = random_pool(lengths, 64, H, dtype)
    q = jax.random.normal(jax.random.key(1), (2, 1, K, 1, G, H), dtype)
    ours = jax.jit(partial(ragged_decode, scale=H**-0.5))(q, **pool)
    pool.pop("owner")
    with jax.default_matmul_precision("highest"):
        theirs = reference.ragged_decode(q, **pool, scale=H**-0.5)
    _hold("ragged_decode", ours, theirs, dtype)


def measure_ragged_decode(speed: Speed, dtype) -> Iterator[Row]:
    """A row for each case, each checked against the XLA path at its own size."""
    check_ragged_decode(dtype)
    for case in cases():
        lengths = case.lengths()
        page = page_slots(case.slots)
        slots = int(lengths.sum())
        size = slots * 2 * H * jnp.dtype(dtype).itemsize
        number = max(1, min(16, -(-IN_TURN // size)))
        cpu = jax.default_backend() == "cpu"
        number = 1 if cpu else number
        pools = [random_pool(lengths, page, H, dtype, seed) for seed in range(number)]
        q = jax.random.normal(jax.random.key(1), (case.batch, 1, K, 1, G, H), dtype)
        paths = {"ours": _op, "xla": _through_xla}
        found = {name: jax.jit(path)(q, pools[0]) for name, path in paths.items()}
        _hold("ragged_decode", found["ours"], found["xla"], dtype)
        rounds = max(1, (ON_CPU if cpu else CALLS) // number)
        took = {
            name: seconds_a_call(partial(_step, path), q, pools, rounds)
            for name, path in paths.items()
        }
        flops = 4 * slots * G * H
        yield Row(
            op="ragged_decode",
            case=case.name,
            batch=case.batch,
            slots=case.slots,
            seconds=took["ours"],
            bytes=size,
            flops=flops,
            floor=speed.floor(size, flops),
            xla=took["xla"],
        )


def _op(q, pool):
    return ragged_decode(q, **pool, scale=H**-0.5)


def _through_xla(q, pool):
    of_pages = {n: x for n, x in pool.items() if n not in ("table", "length")}
    return xla.ragged_decode(q, **of_pages, scale=H**-0.5)


def _step(path, q, pool):
    """The next queries depend on what came out, and hardly differ."""
    return q + path(q, pool)[0] * jnp.asarray(1e-3, q.dtype)


def _hold(op: str, ours, theirs, dtype) -> None:
    limit = CLOSE[jnp.dtype(dtype).name]
    for name, mine, other in zip(("out", "lse"), ours, theirs, strict=False):
        mine, other = (np.asarray(x, np.float32) for x in (mine, other))
        if not np.allclose(mine, other, rtol=limit, atol=limit):
            raise FloatingPointError(
                f"{op}: {name} differs from what it is held to by up to "
                f"{np.nanmax(np.abs(mine - other)):.3g}; no time is given."
            )


MEASURE = {"ragged_decode": measure_ragged_decode}
