"""Which tasks are meant, and which count in the mean."""

import pytest
from jaxkv.configs.evals.core import SUITE

from jaxkv.evaluate import plan
from jaxkv.evaluate.plan import chosen, is_dense
from jaxkv.evaluate.tasks import TASKS


def test_groups_of_tasks():
    assert [task.name for task in chosen(None)] == list(SUITE.tasks)
    assert [task.name for task in chosen(["all", "multi_key"])] == list(TASKS)
    sparse = [task.name for task in chosen(["sparse"])]
    assert "single_needle" in sparse and not any(map(is_dense, sparse))


def test_dense_tasks_are_told_by_their_names(monkeypatch):
    named = {"multi_key": TASKS["multi_key"], "odd_dense": TASKS["single_needle"]}
    monkeypatch.setattr(plan, "TASKS", named)
    assert chosen(["sparse"]) == [TASKS["multi_key"]]
    assert is_dense("two_hop_dense") and not is_dense("two_hop")


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="no task to compare"):
        chosen([])
