"""Runs a notebook's code cells in order, in one namespace, and stores what they show.

    python notebooks/run.py notebooks/01_compare.ipynb [OUT]

Writes the notebook with its outputs to OUT, or over itself: what is printed, and the
value of a cell's last line where that has a picture (`_repr_png_`) or a text. Stops at
the first error. It is for this repository's own notebooks and needs no Jupyter.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code cells; returns it changed in place."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(codes, 1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            value = _run_cell("".join(cell["source"]), f"cell {number}", namespace)
        cell["execution_count"] = number
        cell["outputs"] = [*_printed(said.getvalue()), *_shown(value, number)]
    return notebook


def _run_cell(source: str, name: str, namespace: dict[str, Any]) -> object:
    """Runs it; the value of its last line where that is an expression, or None."""
    tree = ast.parse(source, name)
    namespace["_"] = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        shown = ast.Assign([ast.Name("_", ast.Store())], tree.body[-1].value)
        tree.body[-1] = ast.fix_missing_locations(shown)
    exec(compile(tree, name, "exec"), namespace)
    return namespace["_"]


def _printed(text: str) -> list[dict[str, Any]]:
    lines = [f"{line.rstrip()}\n" for line in text.splitlines()]
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _shown(value: object, number: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    data: dict[str, Any] = {"text/plain": [f"<{type(value).__name__}>"]}
    png = getattr(value, "_repr_png_", None)
    if png is not None:
        data["image/png"] = base64.b64encode(png()).decode()
    else:
        data["text/plain"] = [repr(value)]
    return [
        {
            "data": data,
            "execution_count": number,
            "metadata": {},
            "output_type": "execute_result",
        }
    ]


if __name__ == "__main__":
    source, out = Path(sys.argv[1]), Path(sys.argv[-1])
    found = run(json.loads(source.read_text()))
    out.write_text(json.dumps(found, indent=1) + "\n")
