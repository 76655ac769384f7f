"""Prints a Table to the terminal: one table a question and length, a line a row."""

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from jaxkv.evaluate.table import Row, Table
from jaxkv.heads import groups_note

WIDE = 160  # columns that the table may take; narrower terminals wrap its lines
MOST_TASKS = 6  # beyond them the means of the sparse and the dense ones are shown


def print_table(table: Table, console: Console | None = None) -> None:
    """Cache, answers, score, difference to full and step time of every row.

    A column a task for few tasks; else one for the sparse and one for the dense ones.
    """
    if console is None:
        console = Console()
        console.width = max(console.width, WIDE) if console.is_terminal else WIDE
    for context, question in dict.fromkeys((r.context, r.question) for r in table.rows):
        rows = [r for r in table.rows if (r.context, r.question) == (context, question)]
        tokens = f", {context} tokens" if len(table.contexts) > 1 else ""
        title = f"question {question}{tokens}, n = {max(row.n for row in rows)}"
        console.print(_grid(rows, title))
        for row in rows:
            if row.score is None:
                console.print(
                    f"  {row.method} at {row.keep:g}: {row.note}", highlight=False
                )
    console.print(
        f"{table.model}, {table.context} tokens, {table.dtype}, batch {table.batch}, "
        f"on {table.device}; ± and [ ] are 95 % intervals over contexts, the latter "
        "paired.",
        highlight=False,
    )
    if table.groups > 1:
        console.print(groups_note(table.groups), highlight=False)


def _grid(rows: list[Row], title: str) -> Grid:
    tasks = next((list(row.tasks) for row in rows if row.tasks), [])
    if len(tasks) > MOST_TASKS:
        tasks = []
        kinds = [k for k in ("sparse", "dense") if any(getattr(r, k) for r in rows)]
    else:
        kinds = []
    read = any(row.perplexity is not None for row in rows)
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0))
    grid.add_column("method", no_wrap=True)
    names = ["keep", "cache\nKiB", "of full", *tasks, *kinds, "score"]
    for name in names:
        grid.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    grid.add_column("against full", justify="right", no_wrap=True)
    if read:
        grid.add_column("perplexity", justify="right")
    grid.add_column("step ms", justify="right")
    for row in rows:
        grid.add_row(row.method, f"{row.keep:g}", *_cells(row, tasks, kinds, read))
    return grid


def _cells(row: Row, tasks: list[str], kinds: list[str], read: bool) -> list[str]:
    if row.score is None:
        return ["n/a"]
    assert row.cache_bytes and row.full_cache_bytes and row.tasks and row.decode_step_s
    cells = [
        f"{row.cache_bytes / 1024:,.0f}",
        f"{100 * row.cache_bytes / row.full_cache_bytes:.1f} %",
        *(f"{row.tasks[task]:.2f}" for task in tasks),
        *(f"{getattr(row, kind):.3f}" for kind in kinds),
        f"{row.score:.3f}{_half(row.ci95)}",
    ]
    if row.difference is None or row.method == "full":
        cells.append("")
    else:
        cells.append(f"{row.difference:+.3f}{_both(row.difference_ci95)}")
    if read:
        cells.append("" if row.perplexity is None else f"{row.perplexity:.2f}")
    return [*cells, f"{1000 * row.decode_step_s:.1f}"]


def _half(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f" ±{(ci95[1] - ci95[0]) / 2:.3f}"


def _both(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]"
