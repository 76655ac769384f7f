"""One decode step of a whole model, for several methods, against its floor.

Random weights made on the device (speed does not depend on their values), a real
prefill of random tokens, each method's own cache. The floor is that of the bytes which
a step must read: every weight but the embedding table, and the slots kept.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.bench.floor import Speed
from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import Pages
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder
from jaxkv.phases import decode, feed, start_turn
from jaxkv.prefill import prefill
from jaxkv.prompts import Prompts
from jaxkv.sample import Sample

STEPS = 256  # of one loop
RUNS = 3  # each from where the same prompt ended


@dataclass(frozen=True)
class Row:
    """What came of one method; times in seconds."""

    method: str
    keep: float
    batch: int
    context: int
    step: float
    floor: float
    cache_bytes: int
    headroom_bytes: int
    prefill: float  # of all methods together
    prefill_compile: float
    compile: float  # of the loop of decode steps
    peer: float | None = None


def measure_model(
    model: Decoder,
    methods: Mapping[str, Method],
    context: int,
    batch: int,
    speed: Speed,
) -> Iterator[Row]:
    """A row for each method, all from one prefill of random tokens."""
    tokens = np.random.default_rng(0).integers(
        0, model.config.vocabulary, (batch, context), dtype=np.int32
    )
    prompts = Prompts(tokens, np.full(batch, context, np.int32))
    headroom, rows = STEPS + 1, tuple(methods.values())

    def run():
        began = time.perf_counter()
        caches = prefill(model, prompts, rows, headroom=headroom, rerun=1)
        jax.block_until_ready(caches)
        return caches, time.perf_counter() - began

    caches, first = run()
    del caches
    caches, prefill_seconds = run()
    caches = list(caches)
    for name, method in methods.items():
        figures = _steps(model, caches.pop(0), tokens[:, -1:])
        read = figures.pop("read")
        yield Row(
            method=name,
            keep=method.keep,
            batch=batch,
            context=context,
            floor=speed.floor(read),
            prefill=prefill_seconds,
            prefill_compile=first - prefill_seconds,
            **figures,
        )


def _steps(model, cache: Cache, last: np.ndarray) -> dict:
    """Decodes STEPS tokens, RUNS times after a warm-up; the median run's mean step."""
    held, reserved = cache.cache_bytes, cache.headroom_bytes
    slots_L = cache.lengths.sum(axis=(1, 2))
    size = cache.pools[0].entry.k.itemsize
    slot_bytes = [size * model.config.slot_numbers(i) for i in range(len(slots_L))]
    lengths = jnp.ones(len(last), jnp.int32)
    fed = jax.jit(feed, donate_argnames="cache")
    logits, cache = fed(model, cache, last, lengths)
    turn = start_turn(cache, logits, seed=0)
    ends = [jax.tree.map(jnp.copy, _end(pages)) for pages in cache.pools]
    seconds = []
    for _ in range(RUNS + 1):
        pools = [
            replace(pages, **jax.tree.map(jnp.copy, end))
            for pages, end in zip(turn.cache.pools, ends, strict=True)
        ]
        turn = replace(turn, cache=replace(turn.cache, pools=tuple(pools)))
        jax.block_until_ready(turn)
        began = time.perf_counter()
        turn, tokens = decode(model, turn, STEPS, Sample(), ())
        jax.block_until_ready(tokens)
        seconds.append((time.perf_counter() - began) / STEPS)
    if turn.cache.overflow:
        raise RuntimeError("the cache overflowed: the figures would be of nothing")
    table = 0 if model.config.tie_embeddings else model.table[...].nbytes
    weights = sum(a.nbytes for a in jax.tree.leaves(model)) - table
    return {
        "step": float(np.median(seconds[1:])),
        "compile": (seconds[0] - seconds[1]) * STEPS,
        "read": weights + int(slots_L @ slot_bytes),
        "cache_bytes": held,
        "headroom_bytes": reserved,
    }


def _end(pages: Pages) -> dict:
    """Where a prompt ends in its pages; what is appended later is beyond that."""
    return dict(
        length=pages.length,
        next_position=pages.next_position,
        overflow=pages.overflow,
        row_state=pages.row_state,
    )
