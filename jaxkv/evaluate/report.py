"""report.html: tables and pictures of a comparison in one file, without a network."""

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from jaxkv.evaluate.plots.bytes import size
from jaxkv.evaluate.plots.looks import settings
from jaxkv.evaluate.plots.pictures import Picture
from jaxkv.evaluate.table import Row, Table
from jaxkv.heads import groups_note

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1240px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; }
h2 { font-size: 1.2em; margin-top: 2em; }
code { background: #f2f2f2; padding: 0.15em 0.4em; border-radius: 3px; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.1em 1em; }
dt { color: #666; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
th, td { padding: 0.2em 0.55em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
                                 background: #fff; }
thead th { vertical-align: bottom; border-bottom: 2px solid #888; }
nav a { margin-right: 1.2em; display: inline-block; color: #0072b2; }
figure { margin: 1em 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 13px; }
</style>
</head>
<body>
<h1>$title</h1>
<dl>$about</dl>
<nav>$contents</nav>
$pictures
$tables
<p class="note">$note</p>
</body>
</html>
""")
NOTE = (
    "Score is the mean over tasks of the share of references in the answer; ± and [ ] "
    "are 95 % intervals over contexts, those of the difference to full paired. Times "
    "are a batch's, on warm programs."
)


def report(table: Table, pictures: Sequence[Picture]) -> str:
    """The page: what was run, all pictures, and a table a question and length."""
    grids = dict(_tables(table))
    headings = [picture.heading for picture in pictures] + list(grids)
    return PAGE.substitute(
        title=escape(f"jaxkv compare: {table.model}"),
        about="".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
            for name, value in _about(table)
        ),
        contents="".join(
            f'<a href="#{_anchor(heading)}">{escape(heading)}</a> '
            for heading in dict.fromkeys(headings)
        ),
        tables="\n".join(
            f'{_heading(heading)}\n<div class="wide">{grid}</div>'
            for heading, grid in grids.items()
        ),
        note=escape(f"{NOTE} {groups_note(table.groups)}"),
        pictures="\n".join(map(_figure, pictures)),
    )


def _about(table: Table) -> Iterator[tuple[str, str]]:
    yield "command", table.command
    yield "date", table.date
    yield "model", f"{table.model}, {table.dtype}"
    yield "device", table.device
    yield "context", ", ".join(f"{n} tokens" for n in table.contexts)
    yield "samples", f"{table.samples} contexts a task, seed {table.seed}"
    versions = {"jaxkv": table.version, **table.versions}
    yield "versions", ", ".join(f"{name} {v}" for name, v in versions.items())


def _tables(table: Table) -> Iterator[tuple[str, str]]:
    """The heading and grid of each question and length."""
    for context in table.contexts:
        for question in settings(table.rows):
            rows = [
                row
                for row in table.rows
                if row.context == context and row.question == question
            ]
            n = max(row.n for row in rows)
            yield f"Table: {question}, {context} tokens, n = {n}", _grid(rows)


def _grid(rows: Sequence[Row]) -> str:
    tasks = list(next((row.tasks for row in rows if row.tasks), {}))
    read = any(row.perplexity is not None for row in rows)
    names = ["method", "keep", "cache", "of full", "score", "against full"]
    names += ["sparse", "dense", *(["perplexity"] if read else []), *tasks]
    names += ["prefill ms", "step ms", "compile s"]
    head = "".join(f"<th>{escape(n).replace('_', '<br>')}</th>" for n in names)
    body = "\n".join(f"<tr>{_line(row, tasks, read)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _line(row: Row, tasks: Sequence[str], read: bool) -> str:
    start = f"<td>{escape(row.method)}</td><td>{row.keep:g}</td>"
    if row.score is None:
        return (
            f'{start}<td colspan="99" style="text-align:left">{escape(row.note)}</td>'
        )
    assert row.cache_bytes is not None and row.full_cache_bytes is not None
    assert row.prefill_s is not None and row.decode_step_s is not None
    cells = [
        _cell(size(row.cache_bytes)),
        _cell(f"{100 * row.cache_bytes / row.full_cache_bytes:.1f} %"),
        _score(row.score, row.ci95),
        _cell("" if row.method == "full" else _difference(row)),
        _score(row.sparse, row.sparse_ci95),
        _score(row.dense, row.dense_ci95),
        *([_cell(_plain(row.perplexity, ".2f"))] if read else []),
        *(_score((row.tasks or {}).get(task), None) for task in tasks),
        _cell(f"{1000 * row.prefill_s:,.0f}"),
        _cell(f"{1000 * row.decode_step_s:.1f}"),
        _cell(_plain(row.compile_s, ".1f")),
    ]
    return start + "".join(cells)


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _score(value: float | None, ci95: tuple[float, float] | None) -> str:
    """A cell in a blue that deepens with the score."""
    if value is None:
        return "<td></td>"
    half = "" if ci95 is None else f" ± {(ci95[1] - ci95[0]) / 2:.3f}"
    shade = f"background:rgba(0,114,178,{0.45 * value:.2f})"
    digits = f"{value:.3f}" if half else f"{value:.2f}"
    return f'<td style="{shade}">{digits}{half}</td>'


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    ci95 = row.difference_ci95
    both = "" if ci95 is None else f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]"
    return f"{row.difference:+.3f}{both}"


def _plain(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"{_heading(picture.heading)}\n<figure>"
        f'<img alt="{escape(picture.heading)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _heading(text: str) -> str:
    return f'<h2 id="{_anchor(text)}">{escape(text)}</h2>'


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
