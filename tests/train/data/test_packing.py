"""A plan holds every token once, splits what it must, and leaves little room."""

import numpy as np
import pytest

from jaxkv.train.data.packing import best_fit, plan


def _plan(sizes, length, prompts=None, seed=0):
    ends = np.cumsum(np.array(sizes, np.int64))
    prompts = np.array([0] * len(sizes) if prompts is None else prompts, np.int64)
    return plan(ends, prompts, length, seed)


def _pieces(made):
    return [
        [(int(made.start[j]), int(made.size[j])) for j in range(first, last)]
        for first, last in zip(made.row[:-1], made.row[1:], strict=True)
    ]


@pytest.mark.parametrize("length", [7, 64, 1000])
def test_every_token_is_in_one_row(length):
    sizes = np.random.default_rng(0).integers(1, 300, size=400)
    rows = _pieces(_plan(sizes, length))
    held = sorted(piece for row in rows for piece in row)
    ends = [start + size for start, size in held]
    assert [start for start, _ in held] == [0, *ends[:-1]] and ends[-1] == sizes.sum()
    assert all(sum(size for _, size in row) <= length for row in rows)


def test_only_longer_documents_are_split():
    sizes = [3, 20, 8, 5, 16]
    rows = _pieces(_plan(sizes, 8))
    held = {piece for row in rows for piece in row}
    assert held == {
        (0, 3),
        (3, 8),
        (11, 8),
        (19, 4),
        (23, 8),
        (31, 5),
        (36, 8),
        (44, 8),
    }
    assert len(rows) == 7  # 3 with 4 or 5, and all others alone


def test_a_document_with_a_prompt_is_left_out_rather_than_split():
    made = _plan([3, 9, 8, 20], 8, prompts=[1, 2, 4, 0])
    assert made.dropped == 1
    assert sorted(p for row in _pieces(made) for p in row)[:2] == [(0, 3), (12, 8)]
    at = {int(s): int(p) for s, p in zip(made.start, made.prompt, strict=True)}
    assert at == {0: 1, 12: 4, 20: 0, 28: 0, 36: 0}


def test_short_documents_leave_almost_no_room():
    sizes = np.random.default_rng(1).integers(5, 700, size=3000)
    made = _plan(sizes, 512)
    assert sizes.sum() / (512 * (len(made.row) - 1)) > 0.99


def test_best_fit_takes_the_fullest_row_that_holds_it():
    assert best_fit([6, 5, 2, 2, 1], 8).tolist() == [0, 1, 0, 1, 1]
    assert best_fit([8, 8], 8).tolist() == [0, 1]
    assert best_fit([], 8).tolist() == []


def test_a_seed_decides_which_documents_meet():
    sizes = [4] * 100
    assert _pieces(_plan(sizes, 8)) == _pieces(_plan(sizes, 8))
    assert _pieces(_plan(sizes, 8)) != _pieces(_plan(sizes, 8, seed=1))
