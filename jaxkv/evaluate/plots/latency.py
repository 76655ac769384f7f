"""Seconds of a batch: each question's shared prefill, and every row's decode step."""

from matplotlib.figure import Figure

from jaxkv.evaluate.plots.looks import INK, drawn, labels, looks, settings, styled
from jaxkv.evaluate.table import Table


def plot_latency(table: Table) -> Figure:
    """Bars a row: one decode step; the title says what the shared prefill took.

    Milliseconds of one batch on warm programs, at the longest context.
    """
    rows = [
        row
        for row in table.rows
        if row.context == table.contexts[-1] and row.decode_step_s is not None
    ]
    names = drawn(rows)
    columns = settings(rows)
    colors = looks(table.rows)
    with styled():
        figure = Figure(
            figsize=(4.2 * len(columns) + 1.6, 0.235 * len(names) + 1.2),
            layout="constrained",
        )
        figure.subplots(1, len(columns), sharex=True, sharey=True)
        for panel, question in zip(figure.axes, columns, strict=True):
            own = [r for r in rows if r.question == question]
            own = [row for row in own if (row.method, row.keep) in names]
            at = [names.index((row.method, row.keep)) for row in own]
            steps = [1000 * (row.decode_step_s or 0) for row in own]
            bars = panel.barh(at, steps, color=[colors[r.method].color for r in own])
            panel.bar_label(bars, fmt="%.3g", padding=3, fontsize=8, color=INK)
            prefill = 1000 * (own[0].prefill_s or 0)
            panel.set_title(f"{question}: prefill {prefill:,.0f} ms", fontsize=10)
            panel.set_xlabel(f"ms a decode step, batch {table.batch}")
            panel.margins(x=0.14)
        figure.axes[0].set_yticks(range(len(names)), labels(names))
        figure.axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure
