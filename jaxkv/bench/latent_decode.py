"""latent_decode: one token's heads a sequence, against caches of latents.

At DeepSeek's sizes: 512 numbers that are key and value, and 64 of a rotary key. The
peer is torch's attention over a dense cache, every head reading the same latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.bench import row
from jaxkv.bench.decode import Decode
from jaxkv.bench.floor import Speed
from jaxkv.bench.peers import peer_seconds
from jaxkv.bench.pools import random_pool
from jaxkv.bench.row import Row
from pallas_kernels.latent_decode import latent_decode, reference, xla
from pallas_kernels.layout import page_slots

VALUE, ROTARY = 512, 64
SCALE = 192**-0.5  # of the heads that are not absorbed: 128 + 64 numbers


@dataclass(frozen=True)
class Case:
    """A cache of `batch` sequences with `slots` slots each, and a token's `heads`."""

    heads: int
    batch: int
    slots: int

    @property
    def name(self) -> str:
        return f"{self.heads} heads"


CASES = (
    Case(128, 32, 32768),
    Case(16, 32, 32768),
    Case(64, 32, 32768),
    Case(128, 8, 3277),
    Case(16, 8, 3277),
    Case(128, 1, 131072),
)
SMALL = (Case(128, 2, 205), Case(16, 2, 2048))  # where there is no accelerator


def measure_latent_decode(speed: Speed, dtype, peer: bool) -> Iterator[Row]:
    """A row for each case, each checked against the XLA path at its own size."""
    check(dtype)
    for case in SMALL if row.cpu() else CASES:
        seconds = None
        if peer:
            numbers = case.heads, case.batch, case.slots
            seconds = peer_seconds("jaxkv.bench.torch_latent", *numbers)
            seconds = seconds[case.batch, case.slots]
        yield _measure(case, speed, dtype, seconds)
        jax.clear_caches()  # a case's programs hold on to its pools


def check(dtype) -> None:
    """Holds the op to its definition on rows of odd lengths.

    Raises:
      FloatingPointError: they differ.
    """
    lengths = np.array([[0, 65], [200, 1]])
    pool = _pool(lengths, 64, dtype, 0)
    for heads in (16, 128):
        q = _queries(heads, lengths, dtype)
        ours = jax.jit(OP.ours)(q, pool)
        by_table = {name: x for name, x in pool.items() if name != "owner"}
        with jax.default_matmul_precision("highest"):
            theirs = reference.latent_decode(q, **by_table, **_static())
        OP.hold(ours, theirs)


def _measure(case: Case, speed: Speed, dtype, peer: float | None) -> Row:
    page, lengths = page_slots(case.slots), np.full((case.batch, 1), case.slots)
    slots = case.batch * case.slots
    size = slots * (VALUE + ROTARY) * jnp.dtype(dtype).itemsize
    flops = 2 * slots * case.heads * (2 * VALUE + ROTARY)
    pools = [_pool(lengths, page, dtype, seed) for seed in range(row.turns(size))]
    q = _queries(case.heads, lengths, dtype)
    return OP.measure(case, q, pools, size, flops, speed, peer)


def _pool(lengths, page: int, dtype, seed: int) -> dict:
    return random_pool(lengths, page, VALUE + ROTARY, dtype, seed, values=False)


def _queries(heads: int, lengths, dtype):
    batch, rows = lengths.shape
    shape = batch, 1, rows, 1, heads, VALUE + ROTARY
    return jax.random.normal(jax.random.key(1), shape, dtype)


def _static() -> dict:
    return dict(value_dim=VALUE, scale=SCALE)


def _op(q, pool):
    return latent_decode(q, **pool, **_static())


def _through_xla(q, pool):
    of_pages = {n: x for n, x in pool.items() if n not in ("table", "length")}
    return xla.latent_decode(q, **of_pages, **_static())


def _again(out, q):
    """The rotary part stays."""
    return jnp.concatenate([out, q[..., VALUE:]], axis=-1)


OP = Decode("latent_decode", _op, _through_xla, _again)
