"""Saving: every file whole, and no work for a folder that cannot be written to."""

import json

import pytest

from jaxkv.evaluate.table import check_folder
from tests.evaluate.made import made_table


def test_kept_positions_are_saved(tmp_path):
    table = made_table(methods=("full", "snapkv"), contexts=(64,))
    table.save(tmp_path)
    table.save(tmp_path)  # over what is there
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [p["facts"] for p in kept["prompts"]] == [[[9, 13]]] * 2
    assert [row["method"] for row in kept["rows"]] == ["full", "snapkv"] * 2
    about = json.loads((tmp_path / "compare.json").read_text())
    assert not {"kept", "answers", "prompts"} & set(about)
    assert about["versions"] == {"jax": "0.0"} and about["date"] == table.date
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.startswith(".")]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == len([n for n in names if n.endswith(".png")])


def test_a_check_leaves_nothing(tmp_path):
    check_folder(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
    check_folder(tmp_path)
    assert tmp_path.is_dir()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    for bad in (tmp_path / "file", tmp_path / "file" / "in", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="cannot be written to"):
            check_folder(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_plots_by_hand():
    table = made_table()
    assert len(table.plot_kept().axes) == 2 and len(table.plot().axes) == 4
