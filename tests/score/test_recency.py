"""Recency: newer is higher, sinks are protected, by position."""

from dataclasses import replace

import numpy as np
import pytest

from jaxkv.score.recency import Recency
from tests.seen import random_seen


def test_newer_scores_higher_and_sinks_are_protected():
    seen = random_seen([2, 20], 20)
    scores = np.asarray(Recency(sinks=4)(seen))
    assert (np.diff(scores, axis=-1) > 0).all()
    expected = np.zeros((2, 20), bool)
    expected[0, :2] = expected[1, :4] = True  # padding is no sink
    np.testing.assert_array_equal(Recency(sinks=4).protected(seen), expected)


def test_positions_count_not_slots():
    seen = random_seen([20], 20)
    seen = replace(seen, position=seen.position[:, ::-1])
    expected = np.arange(20) >= 16
    np.testing.assert_array_equal(Recency(sinks=4).protected(seen)[0], expected)
    assert (np.diff(np.asarray(Recency()(seen)), axis=-1) < 0).all()


def test_the_smallest_budget_holds_the_sinks_and_the_newest_token():
    assert [Recency(sinks=4).minimum(n) for n in (1, 4, 5, 9)] == [1, 4, 5, 5]


def test_a_negative_number_of_sinks_is_an_error():
    with pytest.raises(ValueError, match="sinks=-1"):
        Recency(sinks=-1)
