"""Per-head lengths: maps of methods whose heads differ, and no others."""

import numpy as np

from jaxkv.evaluate.plots.heads import even, plot_heads, uneven
from tests.evaluate.made import HEADS, LAYERS, made_table


def test_only_uneven_heads_are_drawn():
    table = made_table()
    assert [row.method for row in uneven(table, "aware")] == ["adakv"]
    assert even(table, "aware") == ["snapkv"]
    image = plot_heads(table, "aware").axes[0].images[0].get_array()
    assert image.shape == (LAYERS, HEADS)
    np.testing.assert_allclose(image.mean(), 1)
    assert (np.diff(image, axis=1) > 0).all()


def test_none_where_all_are_even():
    assert plot_heads(made_table(methods=("full", "snapkv")), "aware") is None
