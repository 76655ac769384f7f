"""The bootstrap: known widths, pairing, and no claim from one context."""

import numpy as np
import pytest

from jaxkv.evaluate.intervals import interval


def test_interval_of_a_coin_is_the_textbook_one():
    scores = np.random.default_rng(1).permuted(np.arange(400) % 2.0)[None]
    low, high = interval(list(scores))
    half = 1.96 * 0.5 / np.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.01)
    assert high == pytest.approx(0.5 + half, abs=0.01)


def test_a_constant_difference_has_no_width():
    low, high = interval([np.full(8, 0.25), np.full(8, 0.25)])
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)


def test_tasks_are_drawn_within_themselves():
    scores = [np.zeros(5), np.ones(5)]
    assert interval(scores) == (0.5, 0.5)


def test_tasks_of_unequal_sizes_weigh_alike():
    scores = [np.zeros(50), np.ones(3)]
    assert interval(scores) == (0.5, 0.5)


def test_one_context_says_nothing_of_others():
    assert interval([np.ones(1), np.ones(4)]) is None
