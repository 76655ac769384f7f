"""Causal attention against the plain softmax over an S x S matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention import causal
from jaxkv.attention.causal import (
    KEY_BLOCK,
    PART,
    causal_attention,
    causal_attention_and_lse,
)
from pallas_kernels.column_scores.reference import column_scores

# Lengths either side of a segment's and a key block's end, with each way to group.
SHAPES = [(1, 4, 2), (37, 4, 4), (PART, 6, 1), (PART + 1, 4, 2)]
SHAPES += [(KEY_BLOCK + PART + 3, 6, 2)]


def attention_ref(q, k, v):
    B, S, N, H = q.shape
    K = k.shape[2]
    q_BSKGH = q.reshape(B, S, K, N // K, H)
    z_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BSKGH, k) / H**0.5
    causal_TS = jnp.tril(jnp.ones((S, S), bool))
    z_BKGTS = jnp.where(causal_TS[None, None, None], z_BKGTS, -jnp.inf)
    p_BKGTS = jax.nn.softmax(z_BKGTS, axis=-1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v).reshape(B, S, N, -1)


def inputs(S, N, K, B=2, H=16):
    keys = jax.random.split(jax.random.key(S * N + K), 3)
    heads = (N, K, K)
    return [
        jax.random.normal(key, (B, S, n, H)) for key, n in zip(keys, heads, strict=True)
    ]


@pytest.mark.parametrize(("S", "N", "K"), SHAPES)
def test_forward(S, N, K):
    q, k, v = inputs(S, N, K)
    out = jax.jit(causal_attention)(q, k, v)
    np.testing.assert_allclose(out, attention_ref(q, k, v), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("size", [5, 24])
def test_values_of_another_size_than_keys(size, monkeypatch):
    """A fused kernel wants them alike: shorter ones are filled up for it."""
    q, k, v = inputs(50, 4, 2)
    v = jnp.concatenate([v, v + 1], axis=-1)[..., :size]
    right = attention_ref(q, k, jnp.pad(v, [(0, 0)] * 3 + [(0, 3)]))[..., :size]
    assert causal_attention(q, k, v).shape == right.shape
    np.testing.assert_allclose(causal_attention(q, k, v), right, rtol=1e-5, atol=2e-6)
    seen = []

    def fused(q, k, v, *, is_causal, implementation):
        seen.append(v.shape)
        return plain(q, k, v, is_causal=is_causal)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(causal, "_flash", lambda q: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    found = causal_attention(q, k, v)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    assert seen == ([k.shape] if size < k.shape[-1] else [])


@pytest.mark.parametrize(("S", "N", "K"), SHAPES[1::2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sum_of_each_softmax(S, N, K, dtype):
    q, k, v = (x.astype(dtype) for x in inputs(S, N, K))
    out, lse = jax.jit(causal_attention_and_lse)(q, k, v)
    np.testing.assert_array_equal(out, jax.jit(causal_attention)(q, k, v))
    assert lse.dtype == jnp.float32
    at = jnp.broadcast_to(jnp.arange(S), (2, S))
    known = dict(q_position=at, k_position=at, scale=q.shape[-1] ** -0.5)
    _, wanted = column_scores(q, k, **known)
    np.testing.assert_allclose(lse, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("S", "N", "K"), [(1, 4, 2), (PART + 37, 6, 2)])
def test_gradients(S, N, K):
    q, k, v = inputs(S, N, K, B=1)
    weight = jax.random.normal(jax.random.key(9), q.shape)

    def gradient(attention):
        loss = lambda *qkv: jnp.sum(attention(*qkv) * weight)  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for ours, reference in zip(
        gradient(causal_attention), gradient(attention_ref), strict=True
    ):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_grouped_equals_repeated_heads():
    q, k, v = inputs(53, 6, 2)
    repeated = causal_attention(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2))
    np.testing.assert_allclose(
        causal_attention(q, k, v), repeated, rtol=1e-5, atol=1e-6
    )


def test_large_logits_stay_finite():
    q, k, v = inputs(70, 2, 1)
    out = causal_attention(q * 1e4, k * 1e4, v)
    assert np.isfinite(out).all()


def test_a_query_ignores_later_slots():
    q, k, v = inputs(PART + 9, 4, 2)
    out = jax.jit(causal_attention)(q, k, v)
    cut = jax.jit(causal_attention)(q[:, :100], k[:, :100], v[:, :100])
    np.testing.assert_allclose(out[:, :100], cut, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_its_dtype():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(70, 4, 2))
    out = causal_attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    wide = attention_ref(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(out, np.float32), wide, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("S", [PART + 37, KEY_BLOCK + PART + 3])
def test_segments_are_rows_of_their_own(S):
    q, k, v = inputs(S, 4, 2)
    end = S - PART // 2
    segment = jnp.broadcast_to(jnp.where(jnp.arange(S) < end, 1, 2), q.shape[:2])
    out = jax.jit(causal_attention)(q, k, v, segment)
    for part in (slice(0, end), slice(end, S)):
        alone = causal_attention(q[:, part], k[:, part], v[:, part])
        np.testing.assert_allclose(out[:, part], alone, rtol=1e-4, atol=1e-5)


def test_segments_have_a_gradient():
    q, k, v = inputs(PART + 37, 4, 2)
    segment = jnp.broadcast_to(jnp.arange(PART + 37) // 100, q.shape[:2])

    def second(q, k, v):
        return jnp.square(causal_attention(q, k, v, segment)[:, 100:]).sum()

    slopes = jax.jit(jax.grad(second, argnums=(0, 1, 2)))(q, k, v)
    for slope in slopes:
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[:, :100], 0)
        assert np.abs(slope[:, 100:]).max() > 0
