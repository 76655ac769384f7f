"""How a method looks in every picture of a table: its colour and marker.

Six colours that the colour-blind tell apart (Okabe and Ito, without yellow and black),
each with the next marker once they are used up; `full` is dark grey with a star.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib import rc_context

from jaxkv.evaluate.table import Row

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK = "#333333"
MOST = 40  # lines that a picture has room for
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": False,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Look:
    """A colour and a marker."""

    color: str
    marker: str


def looks(rows: Iterable[Row]) -> dict[str, Look]:
    """Every method's look, by its place in the table."""
    methods = [name for name in dict.fromkeys(row.method for row in rows)]
    others = [name for name in methods if name != "full"]
    found = {"full": Look(INK, "*")}
    for i, name in enumerate(others):
        marker = MARKERS[i // len(COLORS) % len(MARKERS)]
        found[name] = Look(COLORS[i % len(COLORS)], marker)
    return found


def drawn(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Methods and keeps that a picture with a line each has room for.

    Beyond MOST only those of the smallest keep, and full.
    """
    names = list(dict.fromkeys((row.method, row.keep) for row in rows))
    smallest = min(keep for _, keep in names)
    if len(names) > MOST:
        return [n for n in names if n[1] == smallest or n[0] == "full"]
    return names


def labels(names: Sequence[tuple[str, float]]) -> list[str]:
    """The methods' names, with the keep where there are several."""
    several = len({keep for name, keep in names if name != "full"}) > 1
    return [
        f"{name} {keep:g}" if several and name != "full" else name
        for name, keep in names
    ]


def folded(label: str, width: int = 16) -> str:
    """A label in lines of about `width`, broken after _ and at blanks."""
    lines = [""]
    for part in re.split(r"(?<=[_ (])", label):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def styled():
    """The context in which all pictures are drawn."""
    return rc_context(STYLE)


def settings(rows: Iterable[Row]) -> list[str]:
    """aware and agnostic, as far as there are rows of them."""
    return list(dict.fromkeys(row.question for row in rows))
