"""Pages: what is packed and appended is what is held, and nothing is shared or lost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import PoolShape, append, deal, pack
from jaxkv.kept import Kept
from pallas_kernels.dispatch import compile_for
from pallas_kernels.layout import row_lanes

B, S, K, H = 2, 40, 4, 8
SHAPE = PoolShape(groups=2, rows=2, total=20, most=40, headroom=5, page=8)
LENGTH = np.array([[10, 10, 0, 20], [19, 1, 8, 12]])  # groups of two sum to 20


@partial(jax.jit, static_argnames="shape")
def jit_pack(k, v, position, order, length, next_position, shape):
    return pack(Kept(k, v, position, order, length), next_position, shape)


jit_append = jax.jit(append)


@pytest.fixture(scope="module")
def prompt():
    """Keys, values, positions, and each head's own order."""
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, B, S, K, H)).astype(np.float32)
    position = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    order = np.argsort(rng.random((B, K, S)), axis=-1).astype(np.int32)
    return k, v, position, order


@pytest.fixture(scope="module")
def pages(prompt):
    k, v, position, order = prompt
    return jit_pack(k, v, position, order, LENGTH, jnp.full(B, S), shape=SHAPE)


def new_tokens(T, first=S, seed=1):
    k, v = np.random.default_rng(seed).normal(size=(2, B, T, K, H)).astype(np.float32)
    return k, v, np.broadcast_to(first + np.arange(T, dtype=np.int32), (B, T))


def entries(pages, b, head):
    """Position to (key, value) of one head, read through its table."""
    j, r = divmod(head, SHAPE.rows)
    found = {}
    left = int(pages.length[b, j, 0, r])
    for page in np.asarray(pages.table[b, j, 0, r]):
        for slot in range(min(left, SHAPE.page)):
            assert int(pages.owner[b, j, page]) == r
            at = int(pages.position[b, j, page, slot])
            k, v = (
                np.asarray(x[b, j, page, slot]) for x in (pages.entry.k, pages.entry.v)
            )
            assert at not in found
            found[at] = (k, v)
        left -= min(left, SHAPE.page)
    assert left == 0
    return found


def test_a_pool_made_for_a_tpu_holds_the_same(prompt, pages):
    """Its rows are whole lanes, and are counted as they lie."""
    new = new_tokens(3)
    with compile_for("tpu"):
        kept = Kept(*map(jnp.asarray, (*prompt, LENGTH)))
        there = pack(kept, jnp.full(B, S), SHAPE)
        there = append(there, *map(jnp.asarray, new))
    here = jit_append(pages, *new)
    assert there.nbytes - here.nbytes == (row_lanes(H) - 2 * H) * 4 * here.position.size
    for b, head in np.ndindex(B, K):
        ours, theirs = (entries(x, b, head) for x in (there, here))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_each_head_holds_the_first_of_its_order(prompt, pages):
    k, v, _, order = prompt
    for b, head in np.ndindex(B, K):
        found = entries(pages, b, head)
        chosen = order[b, head, : LENGTH[b, head]]
        assert set(found) == set(chosen.tolist())
        for at, (key, value) in found.items():
            np.testing.assert_array_equal(key, k[b, at, head])
            np.testing.assert_array_equal(value, v[b, at, head])


def test_cache_says_what_it_holds(prompt, pages):
    *_, order = prompt
    cache = Cache((pages,))
    np.testing.assert_array_equal(cache.lengths, LENGTH[None])
    for b, head in np.ndindex(B, K):
        chosen = np.sort(order[b, head, : LENGTH[b, head]])
        np.testing.assert_array_equal(cache.positions[0][b][head], chosen)
    np.testing.assert_array_equal(cache.next_position, [S, S])
    assert cache.room >= SHAPE.headroom
    assert not cache.overflow


def test_no_page_is_shared(pages):
    table = np.asarray(pages.table)
    for b, j in np.ndindex(B, SHAPE.groups):
        listed = table[b, j][table[b, j] >= 0]
        assert len(listed) == len(set(listed.tolist()))
        owned = np.flatnonzero(np.asarray(pages.owner[b, j]) >= 0)
        assert set(listed.tolist()) == set(owned.tolist())


def test_append_adds_to_every_head(pages):
    k, v, position = new_tokens(3)
    after = jit_append(pages, k, v, position)
    for b, head in np.ndindex(B, K):
        before, found = entries(pages, b, head), entries(after, b, head)
        assert set(found) == set(before) | {S, S + 1, S + 2}
        for t in range(3):
            np.testing.assert_array_equal(found[S + t][0], k[b, t, head])
            np.testing.assert_array_equal(found[S + t][1], v[b, t, head])
        for at in before:
            np.testing.assert_array_equal(found[at], before[at])
    assert not after.overflow.any()
    np.testing.assert_array_equal(after.next_position, [S + 3, S + 3])


def test_padding_is_not_appended(pages):
    k, v, position = new_tokens(3)
    padded = np.where(np.arange(3) < np.array([[3], [1]]), position, -1)
    after = jit_append(pages, k, v, padded)
    np.testing.assert_array_equal(
        after.length.reshape(B, K), LENGTH + np.array([[3], [1]])
    )
    np.testing.assert_array_equal(after.next_position, [S + 3, S + 1])
    assert set(entries(after, 1, 0)) == set(entries(pages, 1, 0)) | {S}


def test_a_full_head_drops_and_says_so(pages):
    room = np.asarray(pages.capacity - pages.length)
    assert room.min() >= SHAPE.headroom and room.min() < room.max()
    after, first = pages, S
    for step in range(4):
        after = jit_append(after, *new_tokens(3, first, step))
        first += 3
    tight = room < 12
    np.testing.assert_array_equal(after.overflow, tight)
    assert Cache((after,)).overflow
    np.testing.assert_array_equal(
        after.length, np.where(tight, pages.capacity, pages.length + 12)
    )
    for b, head in np.ndindex(B, K):
        j, r = divmod(head, SHAPE.rows)
        before, found = entries(pages, b, head), entries(after, b, head)
        kept = min(12, int(room[b, j, 0, r]))
        assert set(found) == set(before) | set(range(S, S + kept))  # never clamped
        for at in before:
            np.testing.assert_array_equal(found[at], before[at])


def test_overflow_is_sticky(pages):
    after = pages
    for step in range(5):
        after = jit_append(after, *new_tokens(3, S + 3 * step, step))
    flags = np.asarray(after.overflow)
    assert flags.any()
    k, v, position = new_tokens(3)
    again = jit_append(after, k, v, np.full_like(position, -1))
    np.testing.assert_array_equal(again.overflow, flags)


def test_bytes_are_those_of_the_arrays(pages):
    total = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(pages))
    assert pages.cache_bytes + pages.headroom_bytes == total
    used = int(np.ceil(LENGTH / SHAPE.page).sum())
    a_page = SHAPE.page * (2 * H * 4 + 4) + 4  # keys, values, positions; the owner
    assert pages.headroom_bytes == (B * 2 * SHAPE.pages - used) * a_page
    cache = Cache((pages, pages))
    assert cache.cache_bytes == 2 * pages.cache_bytes
    assert cache.headroom_bytes == 2 * pages.headroom_bytes


jit_deal = jax.jit(deal, static_argnames="shape")


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), min_size=2, max_size=2))
def test_there_are_always_enough_pages(cuts):
    low, high = sorted(cuts)
    shape = PoolShape(groups=1, rows=3, total=30, most=30, headroom=5, page=8)
    lengths = [low, high - low, 30 - high]  # any three that sum to rows * slots
    owner, ordinal, table = jit_deal(jnp.array([[lengths]]), shape=shape)
    for r, length in enumerate(lengths):
        mine = np.flatnonzero(np.asarray(owner[0, 0]) == r)
        need = -(-(length + shape.headroom) // shape.page)
        assert len(mine) == need
        np.testing.assert_array_equal(table[0, 0, r, :need], mine)
        assert (np.asarray(table[0, 0, r, need:]) == -1).all()
        np.testing.assert_array_equal(ordinal[0, 0, mine], np.arange(need))


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    slots=st.integers(0, 300),
    headroom=st.integers(1, 100),
    page=st.sampled_from([1, 8, 64]),
)
def test_a_pool_is_large_enough_by_arithmetic(weights, slots, headroom, page):
    rows, total = len(weights), len(weights) * slots
    lengths = [total * w // max(sum(weights), 1) for w in weights]
    lengths[0] += total - sum(lengths)
    shape = PoolShape(1, rows, rows * slots, max(lengths), headroom, page)
    need = [-(-(n + headroom) // page) for n in lengths]
    assert sum(need) <= shape.pages
    assert max(need) <= shape.table
