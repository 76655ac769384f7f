"""KeyDifference: minus the cosine of a key and the mean direction of keys."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxkv.attention.rope import rotate
from jaxkv.score.key_difference import KeyDifference
from tests.seen import random_seen

SEEN = random_seen([12, 20], 20)


def test_scores_equal_the_definition():
    scores = np.asarray(KeyDifference()(SEEN))
    assert scores.dtype == np.float32
    for b, length in enumerate([12, 20]):
        k = np.asarray(SEEN.k[b, :length], np.float64)
        unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
        anchor = unit.mean(axis=0)
        cos = (unit * anchor).sum(axis=-1) / np.linalg.norm(anchor, axis=-1)
        np.testing.assert_allclose(scores[b, :, :length], -cos.T, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing():
    beyond = ~SEEN.valid[..., None, None]
    dirty = KeyDifference()(replace(SEEN, k=jnp.where(beyond, 1e4, SEEN.k)))
    valid = np.broadcast_to(np.asarray(SEEN.valid)[:, None], dirty.shape)
    clean = np.asarray(KeyDifference()(SEEN))
    np.testing.assert_array_equal(np.asarray(dirty)[valid], clean[valid])


def test_mirrored_keys_of_one_repeated_token_tie():
    """Their cosines differ by rounding alone, and the lower position is to stay."""
    same = jnp.broadcast_to(random_seen([1], 1).k, (1, 200, 4, 16))
    seen = random_seen([200], 200)
    seen = replace(seen, k=rotate(same, seen.position, seen.inverse_frequencies))
    scores = np.asarray(KeyDifference()(seen))
    ties = scores == scores[..., ::-1]
    assert ties.mean() > 0.97  # a cosine next to a boundary may fall on either side
    np.testing.assert_allclose(scores, scores[..., ::-1], rtol=2.0**-15, atol=1e-6)


def test_a_key_of_zeros_has_a_score():
    scores = KeyDifference()(replace(SEEN, k=SEEN.k * 0))
    np.testing.assert_array_equal(scores, np.zeros_like(scores))


def test_nothing_is_protected():
    assert not KeyDifference().protected(SEEN).any()
    assert KeyDifference().minimum(20) == 0
