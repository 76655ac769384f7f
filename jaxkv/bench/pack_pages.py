"""pack_pages and append_entries: a tenth of a prompt into pages, and a step's entries.

Held to the XLA path, bit for bit. Bytes are those read and written.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.bench import row
from jaxkv.bench.floor import Speed
from jaxkv.bench.pools import random_pool
from jaxkv.bench.row import Row
from jaxkv.bench.timing import seconds_a_call
from pallas_kernels.layout import page_slots
from pallas_kernels.pack_pages import append_entries, pack_pages, xla

K, H = 8, 128
PROMPT = 8, 32768  # batch, tokens
SMALL = 2, 2048
KEEP = 0.1


def measure_pack_pages(speed: Speed, dtype, peer: bool) -> Iterator[Row]:
    """Every head keeps tokens of its own, in the order of the prompt."""
    batch, tokens = SMALL if row.cpu() else PROMPT
    slots = int(tokens * KEEP)
    page = page_slots(slots)
    pages = -(-slots // page)
    rng = np.random.default_rng(0)
    source = np.full((batch, 1, K, pages * page), -1, np.int32)
    for b, r in np.ndindex(batch, K):
        chosen = rng.choice(tokens, slots, replace=False)
        source[b, 0, r, :slots] = np.sort(chosen)
    owner = np.broadcast_to(
        np.repeat(np.arange(K, dtype=np.int32), pages), (batch, 1, K * pages)
    )
    k, v = _entries(tokens, batch, dtype)
    arrays = dict(
        k=k,
        v=v,
        token_position=jnp.broadcast_to(jnp.arange(tokens), (batch, tokens)),
        owner=jnp.asarray(owner),
        source=jnp.asarray(source.reshape(batch, 1, K * pages, page)),
    )
    ours, theirs = (jax.jit(path)(**arrays) for path in (pack_pages, xla.pack_pages))
    stored = theirs[1] >= 0
    pairs = zip((*ours[0], ours[1]), (*theirs[0], theirs[1]), strict=True)
    _hold(
        "pack_pages", [(np.asarray(x)[stored], np.asarray(y)[stored]) for x, y in pairs]
    )
    size = 2 * batch * K * slots * 2 * H * jnp.dtype(dtype).itemsize
    floor = speed.floor(size)

    def step(path, packed, arrays):
        owner = row.after(packed[1][0, 0, 0, 0], arrays["owner"])
        return path(**arrays | {"owner": owner})

    took = {
        name: seconds_a_call(
            partial(step, path), theirs, [arrays], row.rounds(floor, 1)
        )
        for name, path in (("ours", pack_pages), ("xla", xla.pack_pages))
    }
    yield _row("pack_pages", "a tenth of a prompt", batch, slots, took, size, floor)


def measure_append_entries(speed: Speed, dtype, peer: bool) -> Iterator[Row]:
    """One token's entries in every head, in place, in the loop's own pool."""
    batch, tokens = SMALL if row.cpu() else PROMPT
    slots = int(tokens * KEEP)
    pool = random_pool(np.full((batch, K), slots), page_slots(slots), H, dtype)
    entry, position, table = pool["entry"], pool["position"], pool["table"]
    pages, page = position.shape[2:]
    k, v = _entries(1, batch, dtype)
    arrays = dict(
        k=k,
        v=v,
        new_position=jnp.full((batch, 1), tokens, jnp.int32),
        page=table[..., -1:],
        slot=jnp.full((batch, 1, K, 1), (slots - 1) % page, jnp.int32),
    )
    held = [
        jax.jit(path)(entry, position, **arrays)
        for path in (append_entries, xla.append_entries)
    ]
    pairs = list(zip(*((*found[0], found[1]) for found in held), strict=True))
    _hold("append_entries", pairs)
    size = 2 * batch * K * 2 * H * jnp.dtype(dtype).itemsize
    floor = speed.floor(size)

    def step(path, pool, arrays):
        return path(*pool, **arrays)

    took = {
        name: seconds_a_call(
            partial(step, path), (entry, position), [arrays], row.rounds(floor, 1)
        )
        for name, path in (("ours", append_entries), ("xla", xla.append_entries))
    }
    yield _row(
        "append_entries", f"one token, {pages} pages", batch, slots, took, size, floor
    )


def _entries(tokens: int, batch: int, dtype):
    shape = batch, tokens, 1, K, H
    return (
        jax.random.normal(key, shape, dtype)
        for key in jax.random.split(jax.random.key(0))
    )


def _hold(op: str, pairs) -> None:
    names = "keys", "values", "positions"
    exact = {name: (*pair, 0.0) for name, pair in zip(names, pairs, strict=True)}
    row.hold(op, **exact)


def _row(op, case, batch, slots, took, size, floor) -> Row:
    return Row(
        op=op,
        case=case,
        batch=batch,
        slots=slots,
        seconds=took["ours"],
        bytes=size,
        flops=0,
        floor=floor,
        xla=took["xla"],
    )
