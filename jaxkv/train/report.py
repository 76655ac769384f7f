"""What a finished run leaves: what was trained, its learning curve, its numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from jaxkv.calibrate.store import remember, save, user_folder
from jaxkv.evaluate.language import VOCABULARY
from jaxkv.models.load import tokenizer_of as load_tokenizer
from jaxkv.params import take_apart
from jaxkv.train.claim import write
from jaxkv.train.forward import Student
from jaxkv.train.parts import ADDED, Parts
from jaxkv.train.tokenizer import word_tokenizer

SPEEDS = {"step", "seconds", "tokens_per_second", "model_flop_utilisation"}
SPEEDS |= {"memory_peak_bytes", "skipped", "gradient_norm"}


def write_report(
    out: Path,
    parts: Parts,
    student: Student,
    metrics: dict[str, float | int],
    done: int,
) -> None:
    """Writes what was trained, train.json and curve.png to `out`, from process 0.

    A trained model goes to `out`/model (Hugging Face, bfloat16), also with an add-on
    that goes into it; a trained add-on that is a calibration to a file of its own, and
    once all steps are `done` to the user's calibration folder too.
    """
    model = whole(student.model)
    added = None if student.add_on is None else whole(student.add_on)
    if jax.process_index() != 0:
        return
    told: dict[str, Any] = {"seed": parts.config.seed, "metrics": metrics}
    within = None if added is None else added.into(model)
    model = model if within is None else within
    if within is not None or any(not path.startswith(ADDED) for path in parts.trained):
        from jaxkv.models import folder

        shutil.rmtree(out / "model", ignore_errors=True)  # of an earlier, shorter run
        folder.save(model, tokenizer_of(parts), out / "model", dtype=jnp.bfloat16)
    add_on = parts.config.add_on
    trains_it = any(path.startswith(ADDED) for path in parts.trained)
    if (
        trains_it
        and added is not None
        and add_on is not None
        and add_on.kind is not None
    ):
        params, _ = take_apart(added)
        arrays = {path: np.asarray(x) for path, x in params.items()}
        save(out, model, add_on.kind, arrays)
        if done == parts.config.total:
            remember(model, add_on.kind, arrays)
            save(user_folder(), model, add_on.kind, arrays)
        told["metrics"] = metrics | {k: x.round(4).tolist() for k, x in arrays.items()}
    path = out / "train.json"
    write(path, json.dumps(json.loads(path.read_text()) | told, indent=2) + "\n")
    draw_curve(out / "log.jsonl", out / "curve.png")


def tokenizer_of(parts: Parts) -> Tokenizer | None:
    """The trained model's, or of fresh weights of that vocabulary the demo's."""
    model = parts.config.model
    if isinstance(model, str):
        return load_tokenizer(model)
    return word_tokenizer() if model.vocabulary == len(VOCABULARY) else None


def whole(tree: Any) -> Any:
    """A module whose arrays every process has whole."""
    return jax.tree.map(
        lambda x: (
            multihost_utils.process_allgather(x, tiled=True)
            if not x.is_fully_addressable
            else x
        ),
        tree,
    )


def draw_curve(log: Path, picture: Path) -> None:
    """Draws the loss, its parts, and the share of exact answers, over steps."""
    # Here, because it is slow to import and nothing else in training needs it.
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, other_axes = figure.subplots(1, 2)
    names = sorted({name for record in records for name in record} - SPEEDS)
    exact = [name for name in names if name.startswith("exact_")]
    shown = exact or [name for name in names if name != "loss"]
    for axes, those in ((loss_axes, ["loss"]), (other_axes, shown)):
        for name in those:
            points = [(r["step"], r[name]) for r in records if name in r]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="step")
        if those:  # matplotlib warns of a legend of nothing
            axes.legend()
    loss_axes.set(ylabel="loss")
    if min(record["loss"] for record in records) > 0:
        loss_axes.set(yscale="log")
    other_axes.set(ylabel="answers exactly right" if exact else "")
    figure.savefig(picture, dpi=120)
