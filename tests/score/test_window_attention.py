"""WindowAttention against a slot by slot NumPy version of SnapKV's score."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.score.window_attention import WindowAttention
from tests.seen import random_seen

LENGTHS, S, W = [5, 8, 9, 30, 40], 40, 8
SEEN = random_seen(LENGTHS, S, W=16)


def brute_force(seen, b, window, pool, pooling):
    """s [K, past tokens] of one row in fp64: attention, means, cut, pool."""
    length = int(seen.length[b])
    W = min(window, length)
    q = np.asarray(seen.q[b, -W:], np.float64)
    k = np.asarray(seen.k[b, :length], np.float64)
    N, K, H = q.shape[1], k.shape[1], k.shape[2]
    attention = np.zeros((N, W, length))
    for n, w in np.ndindex(N, W):
        end = length - W + w + 1
        z = k[:end, n // (N // K)] @ q[w, n] / np.sqrt(H)
        p = np.exp(z - z.max())
        attention[n, w, :end] = p / p.sum()
    s = attention.mean(axis=1).reshape(K, N // K, length).mean(axis=1)
    s = s[:, : length - W]
    fill = -np.inf if pooling == "max" else 0.0
    half = pool // 2
    padded = np.pad(s, ((0, 0), (half, half)), constant_values=fill)
    windows = np.stack([padded[:, i : i + s.shape[1]] for i in range(pool)])
    return windows.max(axis=0) if pooling == "max" else windows.sum(axis=0) / pool


@pytest.mark.parametrize(
    ("pool", "pooling"), [(1, "max"), (7, "max"), (5, "average"), (1, "average")]
)
def test_scores_equal_the_definition(pool, pooling):
    score = WindowAttention(window=W, pool=pool, pooling=pooling)
    scores = np.asarray(jax.jit(score)(SEEN))
    assert scores.dtype == np.float32
    for b, length in enumerate(LENGTHS):
        past = max(length - W, 0)
        np.testing.assert_allclose(
            scores[b, :, :past],
            brute_force(SEEN, b, W, pool, pooling),
            rtol=1e-5,
            atol=1e-7,
        )


def test_the_window_is_protected():
    protected = np.asarray(WindowAttention(window=W).protected(SEEN))
    for row, length in zip(protected, LENGTHS, strict=True):
        expected = (np.arange(S) < length) & (np.arange(S) >= length - W)
        np.testing.assert_array_equal(row, expected)


def test_padding_changes_nothing():
    score = WindowAttention(window=W, pool=7)
    beyond = ~SEEN.valid[..., None, None]
    poisoned = replace(
        SEEN,
        k=jnp.where(beyond, 1e4, SEEN.k),
        q=jnp.where((SEEN.q_position < 0)[..., None, None], 1e4, SEEN.q),
    )
    clean, dirty = np.asarray(score(SEEN)), np.asarray(score(poisoned))
    valid = np.broadcast_to(np.asarray(SEEN.valid)[:, None], clean.shape)
    np.testing.assert_array_equal(clean[valid], dirty[valid])


def test_the_smallest_budget_holds_the_window():
    assert [WindowAttention(window=8).minimum(n) for n in (3, 8, 20)] == [3, 8, 8]
    assert WindowAttention(window=8).queries == 8
