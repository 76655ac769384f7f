"""Prints a Table to the terminal: one table a question, a line a row."""

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from jaxkv.evaluate.table import Row, Table

WIDE = 160  # columns that the table may take; narrower terminals wrap its lines


def print_table(table: Table, console: Console | None = None) -> None:
    """Cache, answers a task, score, difference to full and step time of every row."""
    if console is None:
        console = Console()
        console.width = max(console.width, WIDE) if console.is_terminal else WIDE
    for question in dict.fromkeys(row.question for row in table.rows):
        rows = [row for row in table.rows if row.question == question]
        console.print(_grid(rows, question))
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


def _grid(rows: list[Row], question: str) -> Grid:
    tasks = next((list(row.tasks) for row in rows if row.tasks), [])
    n = max(row.n for row in rows)
    title = f"question {question}, n = {n}"
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0))
    grid.add_column("method", no_wrap=True)
    for name in ("keep", "cache\nKiB", "of full", *tasks, "score"):
        grid.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    grid.add_column("against full", justify="right", no_wrap=True)
    grid.add_column("step ms", justify="right")
    for row in rows:
        grid.add_row(row.method, f"{row.keep:g}", *_cells(row, tasks))
    return grid


def _cells(row: Row, tasks: list[str]) -> list[str]:
    if row.score is None:
        return ["n/a"]
    assert row.cache_bytes and row.full_cache_bytes and row.tasks and row.decode_step_s
    cells = [
        f"{row.cache_bytes / 1024:,.0f}",
        f"{100 * row.cache_bytes / row.full_cache_bytes:.1f} %",
        *(f"{row.tasks[task]:.2f}" for task in tasks),
        f"{row.score:.3f}{_half(row.ci95)}",
    ]
    if row.difference is None or row.method == "full":
        cells.append("")
    else:
        cells.append(f"{row.difference:+.3f}{_both(row.difference_ci95)}")
    return [*cells, f"{1000 * row.decode_step_s:.1f}"]


def _half(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f" ±{(ci95[1] - ci95[0]) / 2:.3f}"


def _both(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]"
