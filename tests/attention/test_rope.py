"""Rotary embedding: rotations compose, keep lengths, and depend on distance alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.rope import rotate
from jaxkv.models.config import DecoderConfig
from jaxkv.models.frequencies import RopeScaling

CONFIGS = [
    DecoderConfig(head_dim=16),
    DecoderConfig(
        head_dim=16, rope_theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)
    ),
]


@pytest.fixture(params=CONFIGS, ids=["plain", "llama3"])
def frequencies(request):
    return request.param.inverse_frequencies()


def heads(seed, T=9):
    return jax.random.normal(jax.random.key(seed), (2, T, 3, 16))


def at(position, T=9):
    return jnp.full((2, T), position, jnp.int32)


def test_rotations_compose(frequencies):
    x, by_p, by_d = heads(0), at(37), at(-12)
    twice = rotate(rotate(x, by_p, frequencies), by_d, frequencies)
    once = rotate(x, by_p + by_d, frequencies)
    np.testing.assert_allclose(twice, once, rtol=1e-4, atol=1e-5)


def test_position_zero_is_the_identity(frequencies):
    np.testing.assert_array_equal(rotate(heads(0), at(0), frequencies), heads(0))


def test_lengths_stay(frequencies):
    position = jnp.broadcast_to(jnp.arange(9) * 1000, (2, 9))
    turned = rotate(heads(0), position, frequencies)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1),
        jnp.linalg.norm(heads(0), axis=-1),
        rtol=1e-5,
    )


def test_logits_depend_on_distance_alone(frequencies):
    def logit(query_at, key_at):
        q = rotate(heads(0), at(query_at), frequencies)
        k = rotate(heads(1), at(key_at), frequencies)
        return jnp.sum(q * k, axis=-1)

    np.testing.assert_allclose(logit(90, 40), logit(150, 100), rtol=1e-3, atol=1e-4)


def test_dtype_stays(frequencies):
    assert rotate(heads(0).astype(jnp.bfloat16), at(5), frequencies).dtype == "bfloat16"


def test_llama3_scaling_keeps_fast_and_slows_slow_frequencies():
    scaled = CONFIGS[1].inverse_frequencies()
    plain = DecoderConfig(head_dim=16, rope_theta=5e5).inverse_frequencies()
    assert scaled[0] == plain[0]
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8, rtol=1e-6)
