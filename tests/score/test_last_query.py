"""LastQuery against the last row of a NumPy attention matrix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.score.last_query import LastQuery
from tests.seen import random_seen

LENGTHS, S = [1, 7, 30], 32
SEEN = random_seen(LENGTHS, S, W=4)
score = jax.jit(LastQuery())


def test_scores_equal_the_definition():
    scores = np.asarray(score(SEEN))
    assert scores.dtype == np.float32
    for b, length in enumerate(LENGTHS):
        q = np.asarray(SEEN.q[b, -1], np.float64)
        k = np.asarray(SEEN.k[b, :length], np.float64)
        (N, H), K = q.shape, k.shape[1]
        z = np.stack([k[:, n // (N // K)] @ q[n] / np.sqrt(H) for n in range(N)])
        p = np.exp(z - z.max(axis=-1, keepdims=True))
        p = (p / p.sum(axis=-1, keepdims=True)).mean(axis=0)
        expected = np.broadcast_to(p, (K, length))
        np.testing.assert_allclose(scores[b, :, :length], expected, rtol=1e-5)


def test_padding_changes_nothing():
    beyond = ~SEEN.valid[..., None, None]
    poisoned = replace(SEEN, k=jnp.where(beyond, 1e4, SEEN.k))
    np.testing.assert_array_equal(score(SEEN), score(poisoned))


def test_only_the_newest_can_be_protected():
    assert not np.asarray(LastQuery().protected(SEEN)).any()
    protected = np.asarray(LastQuery(protect_newest=True).protected(SEEN))
    expected = np.arange(S)[None] == np.array(LENGTHS)[:, None] - 1
    np.testing.assert_array_equal(protected, expected)
    assert (LastQuery().minimum(5), LastQuery(True).minimum(5)) == (0, 1)
    assert LastQuery().queries == 1
