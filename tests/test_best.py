"""best is the head of a stable sort, found without one."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.best import best

SCORES = [-np.inf, -1e30, -1.5, -0.0, 0.0, 2.0, 1e30, np.inf]
find = jax.jit(best)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.sampled_from(SCORES), min_size=7, max_size=7),
        min_size=2,
        max_size=2,
    ),
    count=st.lists(st.integers(0, 7), min_size=2, max_size=2),
)
def test_it_is_the_head_of_a_stable_sort(rows, count):
    rows = np.array(rows, np.float32)
    found = np.asarray(find(jnp.asarray(rows), jnp.array(count)))
    for row, mine, n in zip(rows, found, count, strict=True):
        wanted = np.argsort(-row, kind="stable")[:n]
        np.testing.assert_array_equal(np.flatnonzero(mine), np.sort(wanted))


def test_it_counts_among_many():
    scores = jax.random.normal(jax.random.key(0), (3, 5000))
    count = jnp.array([0, 1234, 5000])
    found = find(scores, count)
    np.testing.assert_array_equal(found.sum(axis=-1), count)
    lowest = jnp.where(found, scores, jnp.inf).min(axis=-1)
    assert (jnp.where(found, -jnp.inf, scores).max(axis=-1) < lowest)[1]
