"""Query filters against a singular value decomposition, head by head."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.calibrate import query_filters as made
from jaxkv.calibrate.query_filters import make, query_filters
from jaxkv.calibrate.walk import walk
from tests.tiny import CONFIG, tiny_model, tiny_prompts

LENGTHS = [9, 40, 23]


def brute_force(sequences, drawn=None):
    """[L, K, H] by numpy's SVD of every head's queries, with the left vector's sign."""
    rows = [list(map(np.asarray, _queries(row))) for row in sequences]
    found = []
    for layer in range(CONFIG.layers):
        q_XNH = np.concatenate([row[layer] for row in rows]).astype(np.float64)
        q_XNH = q_XNH if drawn is None else q_XNH[drawn]
        signed = []
        for n in range(CONFIG.query_heads):
            u, _, vh = np.linalg.svd(q_XNH[:, n], full_matrices=False)
            sign = 1.0 if (u[:, 0] > 0).sum() > len(u) / 2 else -1.0
            signed.append(-sign * vh[0])
        found.append(np.reshape(signed, (CONFIG.kv_heads, CONFIG.group, -1)).mean(1))
    return np.stack(found)


def _queries(row):
    look = made._queries
    return [q[0] for q in walk(tiny_model(), jnp.asarray([row]), look)]


def test_filters_equal_the_decomposition():
    """Padding left out, and the sign that of most queries."""
    sequences = tiny_prompts(LENGTHS)
    found = query_filters(tiny_model(), sequences)
    assert set(found) == {"filter"} and found["filter"].dtype == np.float32
    np.testing.assert_allclose(
        found["filter"], brute_force(sequences), rtol=1e-3, atol=1e-4
    )


def test_the_same_few_tokens_are_drawn_for_every_head(monkeypatch):
    monkeypatch.setattr(made, "SAMPLED", 31)
    (sequence,) = tiny_prompts([64])
    drawn = made._drawn(np.array([64]), 64, seed=3)
    assert len(set(drawn.tolist())) == 31 and drawn.max() < 64
    ours = query_filters(tiny_model(), [sequence], seed=3)["filter"]
    theirs = brute_force([sequence], drawn)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert np.abs(ours - query_filters(tiny_model(), [sequence])["filter"]).max() > 1e-3


def test_a_filter_points_away_from_the_queries():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(200, 16)) + np.linspace(-2, 2, 16)
    direction = made._direction(queries.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(direction), 1.0)
    assert (queries @ direction > 0).mean() > 0.9
    np.testing.assert_allclose(made._direction(-queries), -direction, atol=1e-6)
    even = np.diag([3.0, -2.0]).astype(np.float32)  # one on each side, or none
    np.testing.assert_array_equal(made._direction(even), [1, 0])


def test_progress_tells_every_layer():
    told = []
    query_filters(tiny_model(), tiny_prompts([9]), progress=lambda *a: told.append(a))
    assert told == [(0, 2, "query filters"), (1, 2, "query filters")]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="no tokenizer .*jaxkv calibrate --method qf"):
        make(tiny_model(), None)
    with pytest.raises(ValueError, match="There is no text"):
        query_filters(tiny_model(), [])
    with pytest.raises(ValueError, match="Token id 64 of prompt 0 is outside"):
        query_filters(tiny_model(), [[64]])
