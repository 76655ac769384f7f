"""Noise: uniform draws that depend on the sequence, layer, head and token alone."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxkv.score.noise import Noise
from tests.seen import random_seen

SEEN = random_seen([300, 200], 300)
SCORES = np.asarray(Noise()(SEEN))


def test_draws_are_uniform_and_differ():
    assert SCORES.dtype == np.float32
    assert 0 <= SCORES.min() and SCORES.max() < 1
    np.testing.assert_allclose(SCORES.mean(axis=-1), 0.5, atol=0.08)
    assert len(np.unique(SCORES)) > 0.99 * SCORES.size
    other = Noise()(replace(SEEN, layer=SEEN.layer + 1))
    assert abs(np.corrcoef(np.ravel(other), SCORES.ravel())[0, 1]) < 0.1


def test_a_draw_follows_its_sequence_not_its_place_or_padding():
    swapped = Noise()(random_seen([200, 300], 300))
    np.testing.assert_array_equal(swapped, SCORES[::-1])
    shorter = Noise()(random_seen([200], 200))
    np.testing.assert_array_equal(shorter[0], SCORES[1, :, :200])
    assert jnp.abs(SCORES[0, :, :200] - SCORES[1, :, :200]).max() > 0.5
