"""KeyNorm: the negative norm of the key, in fp32."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxkv.attention.rope import rotate
from jaxkv.models.config import DecoderConfig
from jaxkv.score.key_norm import KeyNorm
from tests.seen import random_seen


def test_scores_are_negative_norms():
    seen = random_seen([12, 20], 20)
    expected = -np.sqrt((np.asarray(seen.k, np.float64) ** 2).sum(-1)).swapaxes(1, 2)
    np.testing.assert_allclose(KeyNorm()(seen), expected, rtol=2.0**-15)


def test_half_precision_keys_are_summed_in_fp32():
    seen = random_seen([20], 20)
    half = replace(seen, k=seen.k.astype(jnp.bfloat16))
    scores = KeyNorm()(half)
    assert scores.dtype == jnp.float32
    rounded = replace(seen, k=half.k.astype(jnp.float32))
    np.testing.assert_array_equal(scores, KeyNorm()(rounded))


def test_a_rotated_key_ties_with_itself():
    """Its norm differs by rounding alone, and the lower position is to stay."""
    position = jnp.arange(200, dtype=jnp.int32)[None]
    frequencies = DecoderConfig(head_dim=16).inverse_frequencies()
    same = jnp.broadcast_to(random_seen([1], 1).k, (1, 200, 4, 16))
    seen = replace(random_seen([200], 200), k=rotate(same, position, frequencies))
    norms = jnp.linalg.norm(seen.k, axis=-1)
    assert (norms.min(axis=1) < norms.max(axis=1)).all()
    scores = np.asarray(KeyNorm()(seen))
    np.testing.assert_array_equal(scores, np.tile(scores[..., :1], 200))


def test_nothing_is_protected():
    seen = random_seen([12, 20], 20)
    assert not KeyNorm().protected(seen).any()
    assert KeyNorm().minimum(20) == 0
