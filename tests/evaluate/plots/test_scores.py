"""Scores a line a row: the best on top, perplexity beside them where it is known."""

from dataclasses import replace

from jaxkv.evaluate.plots.scores import plot_scores
from tests.evaluate.made import made_table


def test_the_best_are_on_top():
    figure = plot_scores(made_table())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["adakv", "snapkv", "full"]  # from the bottom up
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["aware", "agnostic", "perplexity"]


def test_no_perplexity_no_panel():
    table = made_table()
    rows = tuple(replace(row, perplexity=None) for row in table.rows)
    titles = [
        panel.get_title() for panel in plot_scores(replace(table, rows=rows)).axes
    ]
    assert titles == ["aware", "agnostic"]
