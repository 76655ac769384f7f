"""Which pictures there are, and that each is a whole PNG of its own."""

import io
from dataclasses import replace

from matplotlib.image import imread

from jaxkv.evaluate.plots.pictures import draw_all
from tests.evaluate.made import made_table


def test_all_pictures_of_a_table():
    pictures = draw_all(made_table())
    assert [picture.file for picture in pictures] == [
        *("compare.png", "compare_64.png", "scores.png"),
        *("depth_aware.png", "depth_agnostic.png"),
        *("kept_aware.png", "heads_aware.png", "kept_agnostic.png"),
        *("heads_agnostic.png", "latency.png"),
    ]
    for picture in pictures:
        pixels = imread(io.BytesIO(picture.png))
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.05
    (heads,) = [p for p in pictures if p.file == "heads_aware.png"]
    assert heads.caption.endswith("Equal in all heads: snapkv.")


def test_a_table_without_scores_has_no_pictures():
    table = made_table()
    out = [replace(row, score=None, note="no") for row in table.rows]
    assert draw_all(replace(table, rows=tuple(out))) == []


def test_answers_of_unknown_depth_have_no_depth_map():
    table = made_table()
    flat = tuple(replace(answer, depth=None) for answer in table.answers)
    files = [picture.file for picture in draw_all(replace(table, answers=flat))]
    assert files and not any(file.startswith("depth") for file in files)
