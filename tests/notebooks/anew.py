"""A notebook of this repository, run anew on a CPU in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


def run_anew(name: str, folder: Path) -> list[dict[str, Any]]:
    """Its code cells with what they show."""
    out = folder / "out.ipynb"
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {
        **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
        [sys.executable, NOTEBOOKS / "run.py", NOTEBOOKS / f"{name}.ipynb", out],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return codes(json.loads(out.read_text()))


def codes(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(cell: dict[str, Any]) -> str:
    """What a cell printed."""
    said = [o for o in cell["outputs"] if o["output_type"] == "stream"]
    return "".join(line for output in said for line in output["text"])
