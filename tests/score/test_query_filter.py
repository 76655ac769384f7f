"""QueryFilter: minus the product of each key with its head's filter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.score.query_filter import QueryFilter
from tests.seen import random_seen

LENGTHS, S = [3, 20, 32], 32
FILTER = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
SEEN = replace(
    random_seen(LENGTHS, S),
    calibration={"query_filters": {"filter": jnp.asarray(FILTER)}},
)
score = jax.jit(QueryFilter())


def test_scores_equal_the_definition():
    k_BSKH = np.asarray(SEEN.k, np.float64)
    scores = np.asarray(score(SEEN))
    assert scores.dtype == np.float32
    for b, h, s in np.ndindex(scores.shape):
        expected = -(k_BSKH[b, s, h] @ FILTER[h])
        np.testing.assert_allclose(scores[b, h, s], expected, rtol=1e-4, atol=1e-5)


def test_it_reads_its_calibration():
    assert QueryFilter().calibration == "query_filters"
    with pytest.raises(KeyError, match="query_filters"):
        score(replace(SEEN, calibration={}))


def test_the_window_is_protected():
    protected = np.asarray(QueryFilter(window=5).protected(SEEN))
    place, n = np.arange(S)[None], np.array(LENGTHS)[:, None]
    np.testing.assert_array_equal(protected, (place < n) & (place >= n - 5))
    assert not np.asarray(QueryFilter(window=0).protected(SEEN)).any()
    assert [QueryFilter(window=8).minimum(n) for n in (3, 20)] == [3, 8]
    with pytest.raises(ValueError, match="window=-1"):
        QueryFilter(window=-1)
