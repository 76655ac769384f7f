"""pack_pages and append_entries through XLA equal the slot by slot definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.layout import Entry
from pallas_kernels.pack_pages import append_entries, pack_pages, reference
from pallas_kernels.pack_pages.specs import SPECS, Spec

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
POOL = Spec("pool", B=2, S=90, J=1, R=2, H=64, P=64, pages=9, T=1)


def prompt(spec, tokens, seed=0):
    """Keys and values [B, tokens, J, R, H] and positions that are not 0, 1, 2, ..."""
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, spec.B, tokens, spec.J, spec.R, spec.H))
    position = np.sort(rng.permutation(10_000)[: spec.B * tokens])
    position = position.reshape(spec.B, tokens).astype(np.int32)
    return k.astype(np.float32), v.astype(np.float32), position


def choice(spec, seed=1):
    """Owners, some of them -1, and sources, some of them -1, in no order."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(-1, spec.R, (spec.B, spec.J, spec.pages), np.int32)
    owner[:, :, 0] = 0
    source = rng.integers(-1, spec.S, (*owner.shape, spec.P), np.int32)
    return owner, source


def pool(spec):
    """An empty pool."""
    shape = (spec.B, spec.J, spec.pages, spec.P)
    k, v = np.random.default_rng(2).normal(size=(2, *shape, spec.H))
    entry = Entry(jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32))
    return entry, jnp.full(shape, -1, jnp.int32)


def places(spec, seed=3):
    """A different (page, slot) for each new entry; some pages are outside the pool."""
    rng = np.random.default_rng(seed)
    shape = (spec.B, spec.J, spec.R, spec.T)
    page, slot = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for b, j in np.ndindex(spec.B, spec.J):
        flat = rng.permutation(spec.pages * spec.P)[: spec.R * spec.T]
        page[b, j] = (flat // spec.P).reshape(shape[2:])
        slot[b, j] = (flat % spec.P).reshape(shape[2:])
    dropped = rng.random(shape) < 0.3
    return np.where(dropped, rng.choice([-1, -7, spec.pages], shape), page), slot


@EVERY
def test_pack_equals_the_definition(spec):
    tokens, (owner, source) = prompt(spec, spec.S), choice(spec)
    entry, position = jax.jit(pack_pages)(*tokens, owner, source)
    keys, values, positions = reference.pack_pages(*tokens, owner, source)
    np.testing.assert_array_equal(position, positions)
    held = positions >= 0
    assert held.any() and not held.all()
    np.testing.assert_array_equal(np.asarray(entry.k)[held], keys[held])
    np.testing.assert_array_equal(np.asarray(entry.v)[held], values[held])
    assert np.isfinite(entry.k).all() and np.isfinite(entry.v).all()


@EVERY
def test_append_equals_the_definition(spec):
    entry, position = pool(spec)
    new, (page, slot) = prompt(spec, spec.T), places(spec)
    wanted = reference.append_entries(
        *(np.array(x) for x in (*entry, position)), *new, page, slot
    )
    entry, position = jax.jit(append_entries)(
        entry, position, *new, jnp.asarray(page, jnp.int32), slot
    )
    for ours, theirs in zip((*entry, position), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_entry_outside_the_pool_changes_nothing():
    entry, position = pool(POOL)
    page = jnp.full((POOL.B, POOL.J, POOL.R, POOL.T), POOL.pages)
    for outside in (page, page * 0 - 1):
        after = jax.jit(append_entries)(
            entry, position, *prompt(POOL, POOL.T), outside, page * 0
        )
        jax.tree.map(np.testing.assert_array_equal, after, (entry, position))


def test_append_writes_in_place():
    entry, position = pool(POOL)
    new, (page, slot) = prompt(POOL, POOL.T), places(POOL)
    compiled = (
        jax.jit(append_entries, donate_argnums=(0, 1))
        .lower(entry, position, *new, jnp.asarray(page, jnp.int32), slot)
        .compile()
    )
    size = sum(x.nbytes for x in (*entry, position))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < entry.k.nbytes // 2
    elements = ",".join(map(str, entry.k.shape))
    copies = [
        line
        for line in compiled.as_text().splitlines()
        if " copy(" in line and f"[{elements}]" in line.split(" copy(")[0]
    ]
    assert not copies, copies
