"""Colours and markers: no two methods look alike, and a method always does."""

from jaxkv.evaluate.plots.looks import MOST, drawn, folded, labels, looks
from tests.evaluate.made import made_row, made_table


def _rows(count, keeps=(0.1,)):
    return [
        made_row(f"m{i}", keep, "aware", 64, 0.5)
        for i in range(count)
        for keep in keeps
    ]


def test_forty_methods_look_different():
    found = looks(_rows(40))
    assert len(set(found.values())) == 41  # with full


def test_full_does_not_shift_the_others():
    rows = made_table().rows
    without = [row for row in rows if row.method != "full"]
    assert looks(rows)["adakv"] == looks(without)["adakv"]


def test_too_many_lines_leave_the_smallest_keep():
    assert len(drawn(_rows(MOST // 2, (0.1, 0.2)))) == MOST
    many = [*_rows(MOST, (0.2, 0.1)), made_row("full", 1.0, "aware", 64, 1.0)]
    assert {keep for _, keep in drawn(many)} == {0.1, 1.0}


def test_labels_name_the_keep_where_there_are_several():
    assert labels([("full", 1.0), ("a", 0.1)]) == ["full", "a"]
    assert labels([("full", 1.0), ("a", 0.1), ("a", 0.2)])[1:] == ["a 0.1", "a 0.2"]


def test_long_labels_are_folded():
    assert folded("snapkv") == "snapkv"
    assert folded("adakv_expected_attention 0.1") == "adakv_expected_\nattention 0.1"
