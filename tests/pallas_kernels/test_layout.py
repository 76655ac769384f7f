"""Pages: their size by the pool, and entries that go where they are told."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.layout import (
    FEWEST_SLOTS,
    MOST_SLOTS,
    Entry,
    gather,
    page_slots,
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
