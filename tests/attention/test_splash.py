"""Splash attention, interpreted on a CPU, is causal attention; so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.causal import causal_attention
from jaxkv.attention.splash import splash_attention, takes

B, S, N, K, H = 2, 256, 4, 2, 128


def drawn():
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (N, K, K, N)
    return [
        jax.random.normal(key, (B, S, n, H), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    ]


@pytest.mark.parametrize("apart", [False, True])
def test_it_is_causal_attention(apart, monkeypatch):
    monkeypatch.setattr("jaxkv.attention.splash.BLOCKS", (128,))
    q, k, v, slope = drawn()
    late = (jnp.arange(S) >= 100).astype(jnp.int32)
    segment = jnp.broadcast_to(1 + late, (B, S))
    segment = segment if apart else None

    def both(attention, **options):
        def f(*qkv):
            return attention(*qkv, segment, **options)

        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            out, back = jax.vjp(f, q, k, v)
            return out, *back(slope)

    ours = both(splash_attention, interpret=True)
    for mine, right in zip(ours, both(causal_attention), strict=True):
        mine, right = (np.asarray(x, np.float32) for x in (mine, right))
        assert np.abs(mine - right).max() <= 0.02 * np.abs(right).max()


def test_blocks_off_the_diagonal_are_told_by_one_number():
    from jaxkv.attention.splash import _Causal

    mask, plain = _Causal((8, 8)), np.tril(np.ones((8, 8), bool))
    for i in range(0, 8, 2):
        for j in range(0, 8, 2):
            index = slice(i, i + 2), slice(j, j + 2)
            told, right = mask[index], plain[index]
            assert told.any() == right.any() and told.all() == right.all()
            assert told.shape == (1, 1) or (told == right).all()


def test_it_takes_whole_tiles_of_16_bits():
    def of(length, dim, dtype=jnp.bfloat16):
        return takes(jnp.zeros((1, length, 2, dim), dtype))

    assert of(256, 128) and not of(200, 128) and not of(256, 64)
    assert not of(256, 128, jnp.float32)
