"""A run's folder is its own: train.json says whose."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from jaxkv.train.config import Train

RESUMED_WITH = {"minutes", "save_every", "log_every", "mesh", "axis_types"}
RESUMED_WITH |= {"keep_last", "keep_every"}
"""What a run may be gone on with otherwise than it began."""


def claim(out: Path, config: Train) -> None:
    """Writes the config to `out`, or checks that it is the one that is there.

    Raises:
      ValueError: a run of another config is there.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "train.json"
    mine = as_json(config)
    if path.is_file():
        compare(out, mine, json.loads(path.read_text())["config"])
    write(path, json.dumps({"config": mine}, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Writes a file so that it is never seen in part."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


def compare(where: Path, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises ValueError, naming the fields, if the run there has another config."""
    differ = [name for name in mine if mine[name] != theirs.get(name)]
    differ = [name for name in differ if name not in RESUMED_WITH]
    if differ:
        raise ValueError(
            f"{where} holds a run with another {', '.join(differ)}; "
            "choose another folder for this one."
        )


def as_json(value: Any) -> Any:
    """A config as JSON has it; what is a choice among classes says which it is."""
    if is_dataclass(value):
        held = {f.name: as_json(getattr(value, f.name)) for f in fields(value)}
        # The first base of a plain config is object, of a choice what it is a kind of.
        chosen = type(value).__base__ is not object
        return {"is": type(value).__name__} | held if chosen else held
    if isinstance(value, tuple | list):
        return [as_json(one) for one in value]
    return value
