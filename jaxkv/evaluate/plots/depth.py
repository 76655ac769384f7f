"""Needle depth against length: a small heat map a method."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxkv.evaluate.plan import is_dense
from jaxkv.evaluate.plots.looks import drawn, folded, labels, styled
from jaxkv.evaluate.table import Answer, Table

BINS = 5
COLUMNS = 7
NOTHING = "#dddddd"  # no question was asked there


def plot_depth(table: Table, question: str) -> Figure:
    """The mean score of the sparse tasks by depth (down) and length (across).

    Depth is where the asked fact stands in the context, 0 % first. One map for each row
    of the table with this `question`; grey where nothing was asked.
    """
    answers = [a for a in with_depth(table) if a.question == question]
    names = drawn([row for row in table.rows if row.score is not None])
    lengths = sorted({a.context for a in answers})
    across = min(COLUMNS, len(names))
    down = -(-len(names) // across)
    with styled():
        figure = Figure(
            figsize=(max(across * 1.75 + 1.2, 4.5), 1.75 * down + 0.9),
            layout="constrained",
        )
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(names) :]:
            panel.set_visible(False)
        pairs = zip(names, labels(names), strict=True)
        for (name, label), panel in zip(pairs, panels.flat, strict=False):
            own = [a for a in answers if (a.method, a.keep) == name]
            image = panel.imshow(
                depth_map(own, lengths),
                cmap=_colors(),
                vmin=0,
                vmax=1,
                aspect="auto",
                interpolation="nearest",
            )
            panel.set_title(folded(label), fontsize=8)
            panel.set_xticks(range(len(lengths)), [str(n) for n in lengths])
            panel.set_yticks([-0.5, BINS / 2 - 0.5, BINS - 0.5], ["0", "50", "100"])
            panel.tick_params(length=2, labelsize=7.5)
        figure.supxlabel("tokens of context", fontsize=9)
        figure.supylabel("depth of the fact, %", fontsize=9)
        figure.colorbar(image, ax=panels, label="score", shrink=0.9, aspect=30)
    return figure


def with_depth(table: Table) -> list[Answer]:
    """The answers to questions about one place: sparse tasks, if there are any."""
    found = [answer for answer in table.answers if answer.depth is not None]
    return [a for a in found if not is_dense(a.task)] or found


def depth_map(answers: Sequence[Answer], lengths: Sequence[int]) -> np.ndarray:
    """Mean scores [BINS, lengths]; nan where nothing was asked."""
    total = np.zeros((BINS, len(lengths)))
    count = np.zeros_like(total)
    for answer in answers:
        assert answer.depth is not None
        at = min(int(answer.depth * BINS), BINS - 1), lengths.index(answer.context)
        total[at] += answer.score
        count[at] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _colors():
    from matplotlib import colormaps

    return colormaps["cividis"].with_extremes(bad=NOTHING)
