"""What is kept: a panel a method, ink where a head holds a position."""

import numpy as np
import pytest

from jaxkv.evaluate.plots.kept import WIDTH, plot_kept, shares, shown
from tests.evaluate.made import HEADS, LAYERS, made_table


def test_a_panel_a_method_but_full():
    table = made_table(keeps=(0.25, 0.5))
    figure = plot_kept(table, "aware")
    assert [p.get_ylabel() for p in figure.axes] == ["snapkv", "adakv"]
    assert {row.keep for row in shown(table, "aware")} == {0.25}
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert image.shape == (LAYERS * HEADS, 64)
    assert (image[:, -16:] == 1).all() and (image[:, :-16] == 0).all()


def test_full_alone_is_drawn():
    table = made_table(methods=("full",))
    assert [row.method for row in shown(table, "agnostic")] == ["full"]


@pytest.mark.parametrize("length", [10, WIDTH, 3 * WIDTH + 7])
def test_shares_of_long_prompts(length):
    held = np.zeros((1, 2, length), bool)
    held[0, 0] = True
    held[0, 1, : length // 2] = True
    found = shares(held)
    assert found.shape == (2, min(length, WIDTH)) and (found[0] == 1).all()
    assert found[1].mean() == pytest.approx(0.5, abs=0.01)


def test_facts_are_marked():
    figure = plot_kept(made_table(), "aware")
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["asked fact"]
