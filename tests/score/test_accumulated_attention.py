"""AccumulatedAttention against a query by query NumPy version."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.causal import causal_attention_and_lse
from jaxkv.score.accumulated_attention import AccumulatedAttention
from tests.seen import random_seen

LENGTHS, S = [1, 7, 30], 32
score = jax.jit(AccumulatedAttention())


def brute_force(seen, b):
    """s [K, length] of one row in fp64, over the queries of stored tokens."""
    length = int(seen.length[b])
    q = np.asarray(seen.every_q[b], np.float64)
    k = np.asarray(seen.k[b, :length], np.float64)
    N, K, H = q.shape[1], k.shape[1], k.shape[2]
    s = np.zeros((K, length))
    for n, i in np.ndindex(N, int(seen.stored[b].sum())):
        z = k[: i + 1, n // (N // K)] @ q[i, n] / np.sqrt(H)
        p = np.exp(z - z.max())
        s[n // (N // K), : i + 1] += p / p.sum() / (N // K)
    return s


@pytest.mark.parametrize("rerun", [0, 2])
def test_scores_equal_the_definition(rerun):
    seen = random_seen(LENGTHS, S, rerun=rerun)
    scores = np.asarray(score(seen))
    assert scores.dtype == np.float32
    for b, length in enumerate(LENGTHS):
        expected = brute_force(seen, b)
        np.testing.assert_allclose(
            scores[b, :, :length], expected, rtol=1e-5, atol=1e-6
        )
        total = np.full(len(expected), max(length - rerun, 0))
        np.testing.assert_allclose(scores[b].sum(axis=-1), total, rtol=1e-5)


def test_sums_that_the_layer_made_change_nothing():
    """Its attention runs over the same keys, and padding that no query looks at."""
    seen = random_seen(LENGTHS, S, rerun=1)
    _, lse = causal_attention_and_lse(seen.every_q, seen.k, seen.v)
    scores = np.asarray(score(replace(seen, lse=lse)))
    for ours, theirs, length in zip(scores, score(seen), LENGTHS, strict=True):
        np.testing.assert_allclose(ours[:, :length], theirs[:, :length], rtol=1e-5)


def test_padding_changes_nothing():
    seen = random_seen(LENGTHS, S)
    beyond = ~seen.valid[..., None, None]
    poisoned = replace(
        seen,
        k=jnp.where(beyond, 1e4, seen.k),
        every_q=jnp.where(beyond, 1e4, seen.every_q),
    )
    np.testing.assert_array_equal(score(seen), score(poisoned))


def test_it_protects_nothing():
    seen = random_seen(LENGTHS, S)
    assert not np.asarray(AccumulatedAttention().protected(seen)).any()
    assert AccumulatedAttention().minimum(30) == AccumulatedAttention().queries == 0
