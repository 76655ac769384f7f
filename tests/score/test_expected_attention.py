"""ExpectedAttention against a head by head NumPy version with full RoPE matrices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.score.expected_attention import ExpectedAttention
from tests.seen import random_seen

LENGTHS, S, SINKS, FUTURE = [3, 5, 30, 40], 40, 4, 32
SEEN = random_seen(LENGTHS, S, W=16)
SCORE = ExpectedAttention(sinks=SINKS, future=FUTURE, epsilon=0.01)


def rope_matrix(position, frequencies):
    """[H, H]: the rotation of one position, half-split layout."""
    half = len(frequencies)
    cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
    matrix = np.zeros((2 * half, 2 * half))
    i = np.arange(half)
    matrix[i, i] = matrix[i + half, i + half] = cos
    matrix[i, i + half], matrix[i + half, i] = -sin, sin
    return matrix


def brute_force(seen, b, score):
    """s [K, tokens after the sinks] of one row in fp64."""
    length = int(seen.length[b])
    f = np.asarray(seen.inverse_frequencies, np.float64)
    q = np.asarray(seen.every_q[b, SINKS:length], np.float64)
    k = np.asarray(seen.k[b, SINKS:length], np.float64)
    v = np.asarray(seen.v[b, SINKS:length], np.float64)
    n, N, H = q.shape
    K = k.shape[1]
    back = np.stack([rope_matrix(-p, f) for p in range(SINKS, length)])
    ahead = range(length, length + score.future)
    R = np.mean([rope_matrix(p, f) for p in ahead], axis=0)
    a = np.zeros((N, n))
    for head in range(N):
        plain = np.einsum("nij,nj->ni", back, q[:, head])
        keys = k[:, head // (N // K)]
        z = keys @ R @ plain.mean(axis=0) / np.sqrt(H)
        if score.covariance:
            sigma = R @ np.cov(plain.T, bias=True) @ R.T
            z = z + np.einsum("ni,ij,nj->n", keys, sigma, keys) / (2 * H)
        p = np.exp(z - z.max())
        a[head] = p / p.sum()
    a = a.reshape(K, N // K, n).mean(axis=1)
    if not score.value_norm:
        return a
    return (a + score.epsilon) * np.linalg.norm(v, axis=-1).T


@pytest.mark.parametrize(
    "score",
    [
        SCORE,
        replace(SCORE, covariance=False),
        replace(SCORE, value_norm=False),
        replace(SCORE, epsilon=0.0, future=1),
    ],
)
def test_scores_equal_the_definition(score):
    scores = np.asarray(jax.jit(score)(SEEN))
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    for b, length in enumerate(LENGTHS):
        if length > SINKS:
            ours, theirs = scores[b, :, SINKS:length], brute_force(SEEN, b, score)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_future_begins_after_the_tokens_not_after_the_padding():
    row = {
        name: getattr(SEEN, name)[2:3, :30]
        for name in ("every_q", "k", "v", "position", "valid", "stored")
    }
    row |= {name: getattr(SEEN, name)[2:3] for name in ("q", "q_position", "key")}
    ours = np.asarray(SCORE(SEEN))[2:3, :, SINKS:30]
    alone = np.asarray(SCORE(replace(SEEN, **row)))[..., SINKS:]
    np.testing.assert_allclose(ours, alone, rtol=1e-5)


def test_padding_and_sinks_do_not_reach_the_others():
    out = (~SEEN.valid | SCORE.protected(SEEN))[..., None, None]
    poisoned = replace(
        SEEN,
        k=jnp.where(out, 1e4, SEEN.k),
        v=jnp.where(out, 1e4, SEEN.v),
        every_q=jnp.where(out, 1e4, SEEN.every_q),
    )
    clean, dirty = np.asarray(SCORE(SEEN)), np.asarray(SCORE(poisoned))
    free = np.broadcast_to(~np.asarray(out)[:, None, :, 0, 0], clean.shape)
    np.testing.assert_array_equal(clean[free], dirty[free])


def test_without_norms_a_row_is_an_attention():
    plain = replace(SCORE, value_norm=False)
    scores = np.asarray(plain(SEEN))
    for b, length in enumerate(LENGTHS):
        total = scores[b, :, SINKS:length].sum(axis=-1)
        np.testing.assert_allclose(total, float(length > SINKS), rtol=1e-5)


def test_no_array_of_tokens_by_tokens():
    long = random_seen([1000], 1000)
    program = str(jax.make_jaxpr(SCORE)(long))
    assert "1000,4,16]" in program
    assert "1000,1000" not in program


def test_the_sinks_are_protected_and_the_smallest_budget_holds_them():
    protected = np.asarray(SCORE.protected(SEEN))
    np.testing.assert_array_equal(protected.sum(axis=-1), [3, 4, 4, 4])
    assert protected[:, :3].all()
    assert [SCORE.minimum(n) for n in (1, 4, 5, 9)] == [1, 4, 5, 5]
