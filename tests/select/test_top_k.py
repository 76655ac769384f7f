"""Orders of slots: protected, by score with ties to the lower position, the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkv.select.best_first import best_first
from jaxkv.select.top_k import InOrder, TopK, rank_of
from tests.seen import random_seen

PROTECTED = jnp.array([[[1, 0, 0, 0, 1, 0, 0, 0]]], bool)
CANDIDATE = jnp.array([[[0, 1, 1, 1, 0, 1, 0, 0]]], bool)
SCORES = jnp.array(
    [[[0.0, 2, 5, 2, 9, 2, 99, 99], [1.0, 0, 0, 0, 1, 0, jnp.inf, jnp.nan]]]
)
SEEN, SLOTS = random_seen([8], 8, N=2, K=2), jnp.full((1, 2), 4)
MOST = 5
top_k = jax.jit(TopK())


def select(scores, protected, candidate):
    return top_k(SEEN, scores, protected, candidate, SLOTS)


@jax.jit
def few(scores, kind):
    return best_first(scores, kind == 0, (kind == 1) | (kind == 2), kind == 1, MOST)


def test_protected_first_then_scores_then_the_rest():
    order = select(SCORES, PROTECTED, CANDIDATE)
    np.testing.assert_array_equal(order[0, 0], [4, 0, 2, 1, 3, 5, 6, 7])
    np.testing.assert_array_equal(order[0, 1][:6], [0, 4, 1, 2, 3, 5])


def test_lowest_scores_stay_ahead_of_what_cannot_be_kept():
    scores = jnp.where(CANDIDATE, -jnp.inf, SCORES)
    order = np.asarray(select(scores, PROTECTED, CANDIDATE))
    assert set(order[0, 0, :6].tolist()) == {0, 1, 2, 3, 4, 5}


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.integers(-2, 2), min_size=8, max_size=8),
    kind=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_order_is_that_of_a_sort(scores, kind):
    kind = np.array(kind)
    tiled = jnp.broadcast_to(jnp.array(scores, jnp.float32), (1, 2, 8))
    masks = (jnp.asarray(kind == turn)[None, None] for turn in (0, 1))
    order = select(tiled, *masks)
    expected = sorted(range(8), key=lambda i: (kind[i], -scores[i], i))
    np.testing.assert_array_equal(order[0], [expected, expected])


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.integers(-2, 2), min_size=8, max_size=8),
    kind=st.lists(st.integers(0, 3), min_size=8, max_size=8),
)
def test_the_first_few_are_those_of_all(scores, kind):
    """Of the protected, the sure, the candidates and the others, in that order."""
    kind, scores = np.array(kind), np.array(scores, np.float32)
    order = few(jnp.asarray(scores)[None, None], jnp.asarray(kind)[None, None])
    expected = sorted(range(8), key=lambda i: (kind[i], -scores[i], i))[:MOST]
    if (kind < 2).sum() <= MOST and (kind < 3).sum() >= MOST:
        np.testing.assert_array_equal(order[0, 0], expected)


@pytest.mark.parametrize("part", [TopK(), InOrder()])
def test_every_slot_comes_once(part):
    order = part(SEEN, SCORES, PROTECTED, CANDIDATE, SLOTS)
    np.testing.assert_array_equal(np.sort(order, axis=-1)[0], [range(8)] * 2)


def test_in_order_looks_at_no_score():
    order = InOrder()(SEEN, SCORES, PROTECTED, CANDIDATE, SLOTS)
    np.testing.assert_array_equal(order[0], [[0, 1, 2, 3, 4, 5, 6, 7]] * 2)


def test_a_rank_is_where_a_token_stands():
    order = jnp.array([[[2, 0, 1], [0, 2, 1]]])
    np.testing.assert_array_equal(rank_of(order, 3), [[[1, 2, 0], [0, 2, 1]]])
    few = [[[1, 4, 0, 4], [0, 4, 1, 4]]]
    np.testing.assert_array_equal(rank_of(order[..., :2], 4), few)
