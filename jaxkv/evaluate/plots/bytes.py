"""Score against bytes: a line a method over its keeps, full as the dashed line."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxkv.evaluate.plots.looks import Look, looks, settings, styled
from jaxkv.evaluate.table import Row, Table

SPREAD = 0.06  # methods of equal bytes stand apart by this share of them, all together
KINDS = ("sparse", "dense")


def plot(table: Table, context: int | None = None) -> Figure:
    """Score against bytes at one length of context, the longest unless it is given.

    One column a question; a row of panels for the sparse tasks and one for the dense
    ones, where there are both. Bars are 95 % intervals over contexts.
    """
    context = context or table.contexts[-1]
    rows = [r for r in table.rows if r.context == context and r.score is not None]
    kinds = [kind for kind in KINDS if any(getattr(r, kind) is not None for r in rows)]
    columns = settings(table.rows)
    with styled():
        size = (4.3 * len(columns) + 2.6, 3.1 * max(len(kinds), 1) + 0.7)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(
            max(len(kinds), 1), len(columns), sharex=True, sharey=True, squeeze=False
        )
        found = looks(table.rows)
        for line, kind in zip(panels, kinds, strict=False):
            for panel, question in zip(line, columns, strict=True):
                those = [row for row in rows if row.question == question]
                _draw(panel, those, kind, found)
            line[0].set_ylabel(f"score, {kind} tasks")
        for panel, question in zip(panels[0], columns, strict=True):
            panel.set_title(question)
        for panel in panels[-1]:
            panel.set_xlabel("cache of a prompt")
        _legend(figure, panels[0, 0], found)
        n = max((row.n for row in rows), default=0)
        figure.suptitle(f"{table.model}, {context} tokens, n = {n}", fontsize=11)
    return figure


def _draw(panel: Axes, rows: Sequence[Row], kind: str, found: dict[str, Look]) -> None:
    names = [name for name in found if name != "full"]
    for row in rows:
        if row.method == "full":
            x, y, *_ = _point(row, kind)
            panel.axhline(y, color=found["full"].color, linestyle="--", linewidth=1)
            panel.plot(
                x, y, marker="*", markersize=13, color=found["full"].color, label="full"
            )
    for i, name in enumerate(names):
        points = sorted(_point(row, kind) for row in rows if row.method == name)
        if not points:
            continue
        x, y, below, above = zip(*points, strict=True)
        apart = 1 + SPREAD * (i / max(len(names) - 1, 1) - 0.5) * 2
        panel.errorbar(
            [value * apart for value in x],
            y,
            yerr=[below, above],
            label=name,
            color=found[name].color,
            marker=found[name].marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=1.3,
            elinewidth=1,
            capsize=2,
        )
    panel.set_ylim(-0.04, 1.06)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(LogLocator(base=2))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.minorticks_off()
    panel.grid(True)


def _legend(figure: Figure, panel: Axes, found: dict[str, Look]) -> None:
    handles, labels = panel.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    names = [name for name in found if name in by_label]
    figure.legend(
        [by_label[name] for name in names],
        names,
        loc="outside right upper",
        fontsize="small",
    )


def _point(row: Row, kind: str) -> tuple[float, float, float, float]:
    """Bytes, score, and how far the interval reaches below and above."""
    value, ci95 = getattr(row, kind), getattr(row, f"{kind}_ci95")
    assert row.cache_bytes is not None and value is not None
    low, high = ci95 or (value, value)
    return row.cache_bytes, value, max(value - low, 0.0), max(high - value, 0.0)


def size(count: float) -> str:
    """Bytes as a person reads them: 512 B, 24.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}"
