"""Score and perplexity of every row, best first, where one keep says it all."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxkv.evaluate.plots.bytes import KINDS
from jaxkv.evaluate.plots.looks import INK, Look, drawn, labels, looks, settings, styled
from jaxkv.evaluate.table import Row, Table

FILL = {"sparse": "full", "dense": "none"}


def plot_scores(table: Table) -> Figure:
    """A line a row: sparse tasks filled, dense hollow, 95 % intervals over contexts.

    The longest context; sorted by the mean score over all questions.
    """
    rows = [r for r in table.rows if r.context == table.contexts[-1]]
    names = sorted(drawn(rows), key=lambda name: _mean(rows, name))
    columns = settings(rows)
    found = looks(table.rows)
    read = [row for row in rows if row.perplexity is not None]
    with styled():
        panels_n = len(columns) + bool(read)
        figure = Figure(
            figsize=(3.3 * panels_n + 1.9, 0.235 * len(names) + 1.5),
            layout="constrained",
        )
        panels = figure.subplots(1, panels_n, sharey=True, squeeze=False)[0]
        for panel, question in zip(panels, columns, strict=False):
            own = [r for r in rows if r.question == question]
            _draw(panel, own, names, found)
            panel.set(title=question, xlabel="score", xlim=(-0.04, 1.04))
        if read:
            _draw_perplexity(panels[-1], read, names, found)
        panels[0].set_yticks(range(len(names)), labels(names))
        panels[0].set_ylim(-0.7, len(names) - 0.3)
        handles, said = panels[0].get_legend_handles_labels()
        by_label = dict(zip(said, handles, strict=True))
        figure.legend(
            by_label.values(),
            [f"{kind} tasks" for kind in by_label],
            loc="outside lower center",
            ncols=2,
            fontsize="small",
        )
    return figure


def _draw(
    panel: Axes,
    rows: Sequence[Row],
    names: list[tuple[str, float]],
    found: dict[str, Look],
) -> None:
    both = all(any(getattr(row, kind) is not None for row in rows) for kind in KINDS)
    apart = 0.14 if both else 0.0
    for row in rows:
        if (row.method, row.keep) not in names:
            continue
        y = names.index((row.method, row.keep))
        if row.score is None:
            panel.text(0.5, y, row.note, va="center", ha="center", fontsize=7)
        for kind, off in zip(KINDS, (apart, -apart), strict=True):
            value, ci95 = getattr(row, kind), getattr(row, f"{kind}_ci95")
            if value is None:
                continue
            low, high = ci95 or (value, value)
            panel.errorbar(
                value,
                y + off,
                xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                marker="o",
                markersize=5,
                fillstyle=FILL[kind],
                color=found[row.method].color,
                label=kind,
                elinewidth=1,
                capsize=2,
                linestyle="none",
            )
    panel.grid(True)


def _draw_perplexity(
    panel: Axes,
    rows: Sequence[Row],
    names: list[tuple[str, float]],
    found: dict[str, Look],
) -> None:
    for row in rows:
        assert row.perplexity is not None
        if (row.method, row.keep) in names:
            y = names.index((row.method, row.keep))
            panel.plot(row.perplexity, y, "o", color=found[row.method].color, ms=5)
        if row.method == "full":
            panel.axvline(row.perplexity, color=INK, linestyle="--", linewidth=1)
    values = [row.perplexity for row in rows if row.perplexity is not None]
    if max(values) > 4 * min(values):
        panel.set_xscale("log")
        ticks = [n * 10**i for i in range(9) for n in (1, 2, 5)]
        inside = [t for t in ticks if min(values) / 2 <= t <= max(values) * 2]
        panel.set_xticks(inside, [f"{t:g}" for t in inside])
        panel.minorticks_off()
    panel.set(title="perplexity", xlabel=f"held-out text, n = {rows[0].perplexity_n}")
    panel.grid(True)


def _mean(rows: Sequence[Row], name: tuple[str, float]) -> float:
    """The mean score over questions; the best are drawn on top, so they come last."""
    found = [
        r.score for r in rows if (r.method, r.keep) == name and r.score is not None
    ]
    return sum(found) / len(found) if found else -1.0
