"""Depth against length: means in the right cells, grey where nothing was asked."""

import numpy as np

from jaxkv.evaluate.plots.depth import BINS, depth_map, plot_depth, with_depth
from tests.evaluate.made import made_table


def test_means_by_depth_and_length():
    table = made_table()
    answers = [a for a in with_depth(table) if a.method == "snapkv"]
    found = depth_map(answers, [64, 128])
    assert found.shape == (BINS, 2)
    assert (found[0] == 0).all() and (found[-1] == 1).all()
    assert np.isnan(found[1:-1]).all()


def test_dense_tasks_have_no_depth():
    assert {a.task for a in with_depth(made_table())} == {"single_needle", "multi_key"}


def test_a_map_a_row():
    figure = plot_depth(made_table(keeps=(0.1, 0.2)), "agnostic")
    titles = [p.get_title() for p in figure.axes if p.get_visible() and p.get_title()]
    assert titles == ["full", "snapkv 0.1", "snapkv 0.2", "adakv 0.1", "adakv 0.2"]
    image = figure.axes[1].images[0].get_array()
    assert image.mask[1:-1].all() and not image.mask[[0, -1]].any()
