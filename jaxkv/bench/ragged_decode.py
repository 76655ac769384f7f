"""ragged_decode: one query a sequence, against caches of several sizes.

The peer is torch's cuDNN attention over a dense cache of as many slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxkv.bench import row
from jaxkv.bench.adakv_lengths import adakv_lengths
from jaxkv.bench.decode import Decode
from jaxkv.bench.floor import Speed
from jaxkv.bench.peers import peer_seconds
from jaxkv.bench.pools import random_pool
from jaxkv.bench.row import Row
from pallas_kernels.layout import page_slots
from pallas_kernels.ragged_decode import ragged_decode, reference, xla

K, G, H = 8, 4, 128


@dataclass(frozen=True)
class Case:
    """A cache of `batch` sequences with `slots` slots a head, or so many on average."""

    name: str
    batch: int
    slots: int
    by_adakv: bool = False

    def lengths(self) -> list[Int[np.ndarray, "B K"]]:
        """Slots of each head, of one layer or of several."""
        if self.by_adakv:
            return adakv_lengths(self.batch, K, self.slots)
        return [np.full((self.batch, K), self.slots)]


CASES = (
    Case("full", 8, 32768),
    Case("full", 1, 131072),
    Case("full", 64, 4096),
    Case("a tenth kept", 8, 3277),
    Case("a tenth kept, AdaKV's heads", 8, 3277, by_adakv=True),
    Case("one page in 16 read", 8, 2048),
    Case("a tenth kept", 1, 3277),
)
SMALL = (  # where there is no accelerator
    Case("full", 2, 2048),
    Case("a tenth kept", 2, 205),
    Case("a tenth kept, AdaKV's heads", 2, 205, by_adakv=True),
)


def cases() -> tuple[Case, ...]:
    return SMALL if row.cpu() else CASES


def measure_ragged_decode(speed: Speed, dtype, peer: bool) -> Iterator[Row]:
    """A row for each case, each checked against the XLA path at its own size."""
    peers = {}
    if peer:
        numbers = [x for case in cases() for x in (case.batch, case.slots)]
        peers = peer_seconds("jaxkv.bench.torch_attention", *numbers)
    check(dtype)
    for case in cases():
        found = _measure(case, speed, dtype, peers.get((case.batch, case.slots)))
        jax.clear_caches()  # a case's programs hold on to its pools
        yield found


def check(dtype) -> None:
    """Holds the op to its definition on rows of odd lengths.

    Raises:
      FloatingPointError: they differ.
    """
    lengths = np.array([[0, 1, 63, 64, 65, 200, 0, 129]] * 2)
    pool = random_pool(lengths, 64, H, dtype)
    q = jax.random.normal(jax.random.key(1), (2, 1, K, 1, G, H), dtype)
    ours = jax.jit(OP.ours)(q, pool)
    pool.pop("owner")
    with jax.default_matmul_precision("highest"):
        theirs = reference.ragged_decode(q, **pool, scale=H**-0.5)
    OP.hold(ours, theirs)


def _measure(case: Case, speed: Speed, dtype, peer: float | None) -> Row:
    layers, page = case.lengths(), page_slots(case.slots)
    slots = round(np.mean([lengths.sum() for lengths in layers]))
    size, flops = slots * 2 * H * jnp.dtype(dtype).itemsize, 4 * slots * G * H
    pools = [
        random_pool(layers[i % len(layers)], page, H, dtype, seed=i)
        for i in range(max(row.turns(size), len(layers)))
    ]
    q = jax.random.normal(jax.random.key(1), (case.batch, 1, K, 1, G, H), dtype)
    return OP.measure(case, q, pools, size, flops, speed, peer)


def _op(q, pool):
    return ragged_decode(q, **pool, scale=H**-0.5)


def _through_xla(q, pool):
    of_pages = {n: x for n, x in pool.items() if n not in ("table", "length")}
    return xla.ragged_decode(q, **of_pages, scale=H**-0.5)


OP = Decode("ragged_decode", _op, _through_xla, again=lambda out, q: out)
