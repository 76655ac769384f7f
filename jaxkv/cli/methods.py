"""`jaxkv methods`: the rows there are, what they say of themselves, their parts."""

import importlib
from dataclasses import dataclass, fields
from typing import Any

from jaxkv.cli.arguments import parse


@dataclass(frozen=True)
class Methods:
    """Lists the methods, their parts and parameters.

    Example: jaxkv methods
    """


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    parse(Methods, arguments, "methods")
    from rich.console import Console
    from rich.table import Table

    from jaxkv.method import names

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(caption='parameters go into the name: "snapkv(window=64, pool=5)"')
    for column in ("method", "what", "parts"):
        table.add_column(column)
    for name in names():
        table.add_row(name, *describe(name))
    console.print(table)
    return 0


def describe(name: str) -> tuple[str, str]:
    """The first line of a row's docstring without its name, and its parts."""
    module = importlib.import_module(f"jaxkv.configs.methods.{name}")
    first = (module.__doc__ or "").strip().partition("\n")[0]
    row = module.METHOD
    parts = [_part(part) for part in (row.score, row.budget, row.select)]
    return first.removeprefix(f"{name}: "), "\n".join(parts)


def _part(part: Any) -> str:
    found = ", ".join(f"{f.name}={getattr(part, f.name)!r}" for f in fields(part))
    return f"{type(part).__name__}({found})"
