"""All pictures of a table, as PNG files with what they show in words."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from jaxkv.evaluate.plots.bytes import plot
from jaxkv.evaluate.plots.depth import plot_depth, with_depth
from jaxkv.evaluate.plots.heads import even, plot_heads
from jaxkv.evaluate.plots.kept import plot_kept
from jaxkv.evaluate.plots.latency import plot_latency
from jaxkv.evaluate.plots.looks import settings, styled
from jaxkv.evaluate.plots.scores import plot_scores
from jaxkv.evaluate.table import Table

DPI = 130


@dataclass(frozen=True)
class Picture:
    """One PNG file, under a heading of the report."""

    file: str
    heading: str
    caption: str
    png: bytes


def draw_all(table: Table) -> list[Picture]:
    """The pictures that this table has something to show in."""
    return [
        Picture(file, heading, caption, _png(figure))
        for file, heading, caption, figure in _figures(table)
    ]


def _figures(table: Table) -> Iterator[tuple[str, str, str, Figure]]:
    if not any(row.score is not None for row in table.rows):
        return
    caption = (
        "Mean share of references in the answer, with 95 % intervals over contexts; "
        "the dashed line is the full cache. Methods of equal bytes stand side by side."
    )
    for context in reversed(table.contexts):
        longest = context == table.contexts[-1]
        file = "compare.png" if longest else f"compare_{context}.png"
        heading = f"Score against bytes, {context} tokens"
        yield file, heading, caption, plot(table, context)
    yield "scores.png", "Scores", _SCORES, plot_scores(table)
    if with_depth(table):
        for question in settings(table.rows):
            figure = plot_depth(table, question)
            file = f"depth_{question}.png"
            yield file, f"Needle depth against length, {question}", _DEPTH, figure
    for prompt in table.prompts:
        question = prompt.question
        if not any(row.question == question for row in table.kept):
            continue
        asked = "; ".join(prompt.asked)
        caption = f"Task {prompt.task}, asked: {asked}. {_KEPT}"
        figure = plot_kept(table, question)
        yield f"kept_{question}.png", f"What is kept, {question}", caption, figure
        figure = plot_heads(table, question)
        if figure is not None:
            caption = _HEADS
            if same := even(table, question):
                caption += f" Equal in all heads: {', '.join(same)}."
            heading = f"Slots of each head, {question}"
            yield f"heads_{question}.png", heading, caption, figure
    yield "latency.png", "Latency", _LATENCY, plot_latency(table)


_SCORES = "The same at the longest context, a line a method, the best on top."
_DEPTH = (
    "Mean score of the sparse tasks by where the asked fact stands; grey where nothing "
    "was asked."
)
_KEPT = (
    "Each line of a panel is one kv head; a mark is a position that it holds. The "
    "triangles stand over the asked facts."
)
_HEADS = "Means over all prompts; the colour is relative to the method's mean."
_LATENCY = (
    "Warm programs; the prefill is shared by all methods and holds all compressions."
)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
