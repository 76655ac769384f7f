"""Mean scores: which tasks count, sparse and dense apart, tasks weigh alike."""

import numpy as np
import pytest

from jaxkv.evaluate.rows import mean_scores

SCORES = {
    "two_hop": np.array([1.0, 0.0]),
    "two_hop_dense": np.array([0.5, 0.5, 0.5, 0.5]),
    "verbatim": np.array([0.0, 0.0]),
}


def test_tasks_weigh_alike_and_some_do_not_count():
    found = mean_scores(SCORES, None, frozenset({"two_hop", "two_hop_dense"}))
    assert found["score"] == 0.5 and found["sparse"] == 0.5 and found["dense"] == 0.5
    assert found["tasks"] == {"two_hop": 0.5, "two_hop_dense": 0.5, "verbatim": 0.0}
    assert found["dense_ci95"] == (0.5, 0.5) and found["sparse_ci95"] == (0.0, 1.0)
    assert "difference" not in found


def test_the_difference_is_paired():
    better = {task: scores + 0.25 for task, scores in SCORES.items()}
    found = mean_scores(SCORES, better, frozenset(SCORES))
    assert found["difference"] == pytest.approx(-0.25)
    assert found["difference_ci95"] == pytest.approx((-0.25, -0.25))


def test_no_dense_task_no_dense_mean():
    found = mean_scores({"a": np.array([1.0])}, None, frozenset({"a"}))
    assert "dense" not in found and found["ci95"] is None
