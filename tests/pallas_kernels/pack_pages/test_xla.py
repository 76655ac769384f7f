"""pack_pages and append_entries through XLA equal the slot by slot definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.pack_pages import append_entries, pack_pages, reference
from pallas_kernels.pack_pages.specs import SPECS, Spec
from tests.pallas_kernels.pack_pages.made import choice, content, places, pool, prompt

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
POOL = Spec("pool", B=2, S=90, J=1, R=2, H=64, P=64, pages=9, T=1)


@EVERY
def test_pack_equals_the_definition(spec):
    tokens, (owner, source) = prompt(spec, spec.S), choice(spec)
    entry, position = jax.jit(pack_pages)(*tokens, owner, source)
    *wanted, positions = reference.pack_pages(*tokens, owner, source)
    *found, position = content(entry, position)
    np.testing.assert_array_equal(position, positions)
    held = positions >= 0
    assert held.any() and not held.all()
    for ours, theirs in zip(found[: 1 + spec.values], wanted, strict=False):
        np.testing.assert_array_equal(ours[held], theirs[held])
        assert np.isfinite(ours).all()


@EVERY
def test_append_equals_the_definition(spec):
    entry, position = pool(spec)
    new, (page, slot) = prompt(spec, spec.T), places(spec)
    wanted = reference.append_entries(*content(entry, position), *new, page, slot)
    entry, position = jax.jit(append_entries)(
        entry, position, *new, jnp.asarray(page, jnp.int32), slot
    )
    jax.tree.map(np.testing.assert_array_equal, content(entry, position), wanted)


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
