"""Shares hold in every step, and every source goes through epochs of its own."""

from collections import Counter

import numpy as np
import pytest

from jaxkv.train.data import Mixture, Tasks, TextFiles, TokenFiles
from tests.train.data.reading import take


@pytest.fixture
def sources(tmp_path):
    """Three files of rows of eight tokens that are all alike: 3, 5 and 20 rows."""
    made = []
    for i, rows in enumerate((3, 5, 20)):
        path = tmp_path / f"{i}.bin"
        ids = np.repeat(np.arange(rows) + 100 * i, 8)
        ids.astype(np.uint16).tofile(path)
        made.append(TokenFiles((str(path),)))
    return tuple(made)


def _used(source, count, rows):
    return [
        [divmod(int(row[0]), 100) for row in batch["tokens"]]
        for batch in take(source, count, rows=rows, length=8)
    ]


def test_shares_hold_in_every_step(sources):
    steps = _used(Mixture(sources, weights=(1, 2, 5)), 10, 16)
    for step in steps:
        assert Counter(source for source, _ in step) == {0: 2, 1: 4, 2: 10}


def test_each_source_has_its_rows_once_an_epoch(sources):
    used = [row for step in _used(Mixture(sources), 20, 3) for row in step]
    for source, rows in enumerate((3, 5, 20)):
        mine = [number for which, number in used if which == source]
        assert len(mine) == 20
        for first in range(0, 20 - rows + 1, rows):
            assert sorted(mine[first : first + rows]) == list(range(rows))


def test_a_mixture_may_hold_mixtures_and_tasks(sources):
    inner = Mixture(sources[:2])
    outer = Mixture((inner, Tasks(("single_needle",), (64,))), weights=(0.75, 0.25))
    batches = take(outer, 2, rows=8, length=64)
    for batch in batches:
        prompted = (batch["segment"] > 0).sum(axis=1) - batch["weight"].sum(axis=1) > 1
        assert prompted.sum() == 2
    assert outer.files() == inner.files() and len(inner.files()) == 2


def test_one_source_twice_comes_in_two_orders(sources):
    used = [row for step in _used(Mixture((sources[2],) * 2), 20, 2) for row in step]
    assert used[::2] != used[1::2] and sorted(used[::2]) == sorted(used[1::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "needs a source"),
        (((Tasks(),), (1.0, 2.0)), "of 1 sources has 2 weights; give one for each"),
        (((Tasks(), Tasks()), (1.0, 0.0)), "are not all above 0"),
        (((Tasks(), Tasks()), (1.0, float("nan"))), "are not all above 0"),
    ],
)
def test_faults_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(*arguments)


def test_a_fault_of_a_source_is_the_mixtures(tmp_path):
    mixture = Mixture((Tasks(), TextFiles((str(tmp_path / "*.txt"),))))
    with pytest.raises(ValueError, match="no file matches"):
        mixture.files()
