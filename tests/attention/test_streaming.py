"""Streaming attention equals a masked reference, and so does its gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.causal import causal_attention
from jaxkv.attention.streaming import BLOCK, streaming_attention

N, K, H = 4, 2, 16


def arrays(S, dtype=jnp.float32, B=2):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((B, S, N, H), (B, S, K, H), (B, S, K, H))
    return tuple(
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )


def masked(q, k, v, *, sinks, recent):
    """The definition: one S x S matrix."""
    S = q.shape[1]
    k, v = (jnp.repeat(x.astype(jnp.float32), N // K, axis=2) for x in (k, v))
    z = jnp.einsum("btnh,bsnh->bnts", q.astype(jnp.float32), k) * H**-0.5
    ago = jnp.arange(S)[:, None] - jnp.arange(S)[None]
    seen = (ago >= 0) & ((jnp.arange(S)[None] < sinks) | (ago < recent))
    p = jax.nn.softmax(jnp.where(seen[None, None], z, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", p, v).astype(q.dtype)


@pytest.mark.parametrize(
    ("S", "sinks", "recent"),
    [
        (1, 4, 8),
        (37, 4, 8),
        (2 * BLOCK, 0, 1),
        (2 * BLOCK + 5, 16, 100),
        (3 * BLOCK, BLOCK + 3, 7),
        (401, 3, BLOCK + 9),
        (50, 60, 3),
    ],
)
def test_equals_the_definition(S, sinks, recent):
    attend = jax.jit(partial(streaming_attention, sinks=sinks, recent=recent))
    theirs = masked(*arrays(S), sinks=sinks, recent=recent)
    np.testing.assert_allclose(attend(*arrays(S)), theirs, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_definition():
    S, options = 300, dict(sinks=5, recent=40)
    weight = jax.random.normal(jax.random.key(1), (2, S, N, H))

    def loss(attend, *qkv):
        return (attend(*qkv, **options) * weight).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        gradient(streaming_attention, *arrays(S)),
        gradient(masked, *arrays(S)),
    )


def test_everything_recent_is_causal_attention():
    ours = streaming_attention(*arrays(200), sinks=0, recent=200)
    theirs = causal_attention(*arrays(200))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_half_precision():
    options = dict(sinks=4, recent=30)
    ours = streaming_attention(*arrays(150, jnp.bfloat16), **options)
    assert ours.dtype == jnp.bfloat16
    theirs = masked(*arrays(150, jnp.bfloat16), **options)
    np.testing.assert_allclose(
        ours.astype(np.float32), theirs.astype(np.float32), rtol=3e-2, atol=3e-2
    )


def test_no_square_tensor():
    """32768 tokens: the program's memory is that of its band."""
    S = 32768
    shapes = [
        jax.ShapeDtypeStruct((1, S, heads, 64), jnp.bfloat16) for heads in (2, 1, 1)
    ]
    attend = jax.jit(partial(streaming_attention, sinks=64, recent=256))
    used = attend.lower(*shapes).compile().memory_analysis()
    assert used.temp_size_in_bytes < 128e6 < S * S
