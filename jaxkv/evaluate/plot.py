"""Draws a Table: score against bytes."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from jaxkv.evaluate.table import Row, Table


def plot(table: Table) -> Figure:
    """One panel a question; a line a method over its keeps, full as the dashed line."""
    questions = list(dict.fromkeys(row.question for row in table.rows))
    figure = Figure(figsize=(5.2 * len(questions) + 1.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(questions), sharey=True, squeeze=False)[0]
    colors = {name: f"C{i}" for i, name in enumerate(_methods(table.rows))}
    for panel, question in zip(panels, questions, strict=True):
        rows = [r for r in table.rows if r.question == question and r.score is not None]
        for row in rows:
            if row.method == "full":
                panel.axhline(row.score, color="0.4", linestyle="--", label="full")
                panel.plot(*_point(row)[:2], marker="*", markersize=12, color="0.4")
        for name, color in colors.items():
            _line(panel, [row for row in rows if row.method == name], name, color)
        panel.set(title=question, xlabel="cache of a prompt, KiB", ylim=(-0.03, 1.03))
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of references in the answer")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.suptitle(f"{table.model}, {table.context} tokens, n = {table.rows[0].n}")
    return figure


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows if row.method != "full"))


def _line(panel, rows: Sequence[Row], name: str, color: str) -> None:
    """A method's points, with the 95 % interval of each score."""
    if not rows:
        return
    points = sorted(_point(row) for row in rows)
    kibibytes, scores, below, above = zip(*points, strict=True)
    panel.errorbar(
        kibibytes,
        scores,
        yerr=[below, above],
        label=name,
        color=color,
        marker="o",
        capsize=2,
        alpha=0.8,
    )


def _point(row: Row) -> tuple[float, float, float, float]:
    """KiB, score, and how far the interval reaches below and above."""
    assert row.cache_bytes is not None and row.score is not None
    low, high = row.ci95 or (row.score, row.score)
    below, above = max(row.score - low, 0.0), max(high - row.score, 0.0)
    return row.cache_bytes / 1024, row.score, below, above
