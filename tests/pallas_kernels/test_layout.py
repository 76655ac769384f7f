"""Pages: their size by the pool, and entries that go where they are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import compile_for
from pallas_kernels.layout import (
    FEWEST_SLOTS,
    MOST_SLOTS,
    Entry,
    gather,
    page_slots,
    row_lanes,
    side_by_side,
    stored,
    write,
)


@pytest.mark.parametrize(
    ("slots", "page"),
    [
        (0, 64),
        (1, 64),
        (4096, 64),
        (4160, 128),
        (8192, 128),
        (16384, 256),
        (10**6, 512),
    ],
)
def test_page_sizes_grow_with_the_pool(slots, page):
    assert page_slots(slots) == page


def test_page_sizes_are_powers_of_two_and_never_shrink():
    sizes = [page_slots(n) for n in range(0, 50_000, 37)]
    assert sizes == sorted(sizes)
    assert set(sizes) <= {FEWEST_SLOTS, 128, 256, MOST_SLOTS}


def test_gather_and_write():
    k = jnp.arange(5 * 2 * 3, dtype=jnp.float32).reshape(5, 2, 3)
    token, row = jnp.array([[4, 0], [2, 2]]), jnp.array([[1, 1], [0, 1]])
    entry = gather(k, -k, token, row)
    np.testing.assert_array_equal(entry.k, np.asarray(k)[token, row])
    np.testing.assert_array_equal(entry.v, -entry.k)
    new = jnp.full((2, 1, 3), 7.0, jnp.bfloat16)  # cast to what the pool holds
    page, slot = jnp.array([[1], [2]]), jnp.array([[0], [0]])  # page 2 is outside
    written = write(Entry(entry.k, entry.v), page, slot, new, new)
    expected = np.array(entry.k)
    expected[1, 0] = 7
    np.testing.assert_array_equal(written.k, expected)
    assert written.v.dtype == jnp.float32


@pytest.mark.parametrize(
    ("head_dim", "lanes"), [(8, 128), (64, 128), (65, 256), (96, 256), (160, 512)]
)
def test_on_a_tpu_a_slot_is_one_row_of_whole_lanes(head_dim, lanes):
    k, v = np.random.default_rng(0).normal(size=(2, 3, 4, head_dim)).astype(np.float32)
    with compile_for("tpu"):
        entry = stored(jnp.asarray(k), jnp.asarray(v))
    assert entry.row.shape == (3, 4, lanes) and row_lanes(head_dim) == lanes
    np.testing.assert_array_equal(entry.k, k)
    np.testing.assert_array_equal(entry.v, v)
    held = np.abs(k).sum() + np.abs(v).sum()
    np.testing.assert_allclose(np.abs(entry.row).sum(), held, rtol=1e-5)
    np.testing.assert_array_equal(entry.value_at(jnp.array([2, 0])), v[[2, 0]])
    # A kernel multiplies by the first lanes, and cuts values out of the last.
    read = np.asarray(entry.row)[..., -entry.lanes :]
    cut = slice(entry.value_lane, entry.value_lane + head_dim)
    np.testing.assert_array_equal(read[..., cut], v)


@pytest.mark.parametrize(("platform", "head_dim"), [("cpu", 64), ("tpu", 128)])
def test_elsewhere_and_of_whole_lanes_they_lie_apart(platform, head_dim):
    x = jnp.ones((2, head_dim))
    with compile_for(platform):
        assert isinstance(stored(x, x), Entry)


def test_gather_and_write_side_by_side():
    """As apart, and what is left of the rows stays 0."""
    k, v = jax.random.normal(jax.random.key(0), (2, 5, 2, 3))
    token, row = jnp.array([[4, 0], [2, 2]]), jnp.array([[1, 1], [0, 1]])
    page, slot = jnp.array([[1], [2]]), jnp.array([[0], [0]])
    new = jnp.full((2, 1, 3), 7.0, jnp.bfloat16)
    here = write(gather(k, v, token, row), page, slot, new, -new)
    with compile_for("tpu"):
        there = write(gather(k, v, token, row), page, slot, new, -new)
    np.testing.assert_array_equal(there.k, here.k)
    np.testing.assert_array_equal(there.v, here.v)
    np.testing.assert_array_equal(there.row, side_by_side(here.k, here.v).row)


@pytest.mark.parametrize(
    ("platform", "head_dim", "lanes"),
    [("cpu", 96, 96), ("gpu", 576, 576), ("tpu", 96, 128), ("tpu", 576, 640)],
)
def test_latents_are_one_row_a_slot(platform, head_dim, lanes):
    """Of whole lanes on a TPU; what is left of them is 0 and stays 0."""
    k = jax.random.normal(jax.random.key(0), (5, 2, head_dim))
    token, row = jnp.array([[4, 0], [2, 2]]), jnp.array([[1, 1], [0, 1]])
    page, slot = jnp.array([[1], [2]]), jnp.array([[0], [0]])  # page 2 is outside
    new = jnp.full((2, 1, head_dim), 7.0, jnp.bfloat16)
    with compile_for(platform):
        entry = write(gather(k, None, token, row), page, slot, new, None)
    wanted = np.array(k)[token, row]
    wanted[1, 0] = 7
    np.testing.assert_array_equal(entry.k, wanted)
    assert entry.row.shape == (2, 2, lanes) and entry.v is None
    assert (np.asarray(entry.row)[..., head_dim:] == 0).all()
