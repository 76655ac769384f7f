"""Entrants: the rows of a comparison, and why one cannot take part."""

from jaxkv.evaluate.entrants import entrants
from jaxkv.method import names


def test_all_methods_with_full_first():
    rows = entrants(None, (0.12,))
    assert rows[0].name == "full" and {row.name for row in rows} == set(names())


def test_the_same_row_twice_is_one():
    assert len(entrants(["random", "random"], (0.5, 0.5))) == 1


def test_a_row_says_what_it_holds_at_least():
    (row,) = entrants(["snapkv(window=64)"], (0.1,))
    assert row.excuse(1000) == ""
    assert row.excuse(500) == "holds 64 slots at least, keep 0.128"


def test_full_takes_part_at_any_length():
    (row,) = entrants(["full"], (0.001, 0.5))
    assert row.keep == 1 and row.excuse(10) == ""
