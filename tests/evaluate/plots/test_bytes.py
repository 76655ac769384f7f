"""Score against bytes: panels, points and intervals stand where the rows say."""

import numpy as np

from jaxkv.evaluate.plots.bytes import plot, size
from tests.evaluate.made import made_table


def test_a_panel_a_question_and_kind():
    panels = plot(made_table()).axes
    assert [panel.get_title() for panel in panels] == ["aware", "agnostic", "", ""]
    assert panels[0].get_ylabel() == "score, sparse tasks"
    assert panels[2].get_ylabel() == "score, dense tasks"


def test_points_are_the_rows():
    table = made_table(keeps=(0.25, 0.5))
    panel = plot(table, 64).axes[0]
    lines = {bar.get_label(): bar.lines[0] for bar in panel.containers}
    rows = {row.keep: row for row in table.rows if row.method == "snapkv"}
    x, y = lines["snapkv"].get_xydata().T
    np.testing.assert_allclose(x, [0.25 * 2048 * 64, 0.5 * 2048 * 64], rtol=0.07)
    np.testing.assert_allclose(y, [rows[0.25].sparse, rows[0.5].sparse])


def test_intervals_reach_as_far_as_they_should():
    table = made_table()
    panel = plot(table).axes[0]
    (bar,) = [bar for bar in panel.containers if bar.get_label() == "snapkv"]
    (row,) = [
        r
        for r in table.rows
        if (r.method, r.question, r.context) == ("snapkv", "aware", 128)
    ]
    (segment,) = bar.lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 1], row.sparse_ci95)


def test_bytes_in_words():
    assert [size(n) for n in (512.0, 2048.0, 25_368_576.0)] == [
        "512 B",
        "2 KiB",
        "24.2 MiB",
    ]
