"""Latency: a bar a row as long as its decode step."""

import pytest

from jaxkv.evaluate.plots.latency import plot_latency
from tests.evaluate.made import made_table


def test_bars_are_milliseconds():
    figure = plot_latency(made_table())
    aware, agnostic = figure.axes
    widths = [bar.get_width() for bar in aware.patches]
    assert widths == pytest.approx([10.0, 2.5, 2.5])
    assert aware.get_title() == "aware: prefill 100 ms"
    names = [label.get_text() for label in aware.get_yticklabels()]
    assert names == ["full", "snapkv", "adakv"] and agnostic.patches
