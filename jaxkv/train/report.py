"""What a finished run leaves: the model's folder, its learning curve, its numbers."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxkv.models.decoder import Decoder
from jaxkv.train.config import Train, TrainGates
from jaxkv.train.tokenizer import word_tokenizer


def write_report(
    out: Path, config: Train, model: Decoder, metrics: dict[str, float | int]
) -> None:
    """Writes `out`/model (Hugging Face, bfloat16), train.json and curve.png."""
    from jaxkv.models.folder import save

    shutil.rmtree(out / "model", ignore_errors=True)  # of an earlier, shorter run
    save(model, word_tokenizer(), out / "model", dtype=jnp.bfloat16)
    _note(out, config.seed, metrics)
    draw_curve(out / "log.jsonl", out / "curve.png")


def write_gates_report(
    out: Path,
    config: TrainGates,
    gate: Float[np.ndarray, "L K"],
    metrics: dict[str, float | int],
) -> None:
    """Writes `out`/train.json and curve.png: both terms over steps, and the gates."""
    from matplotlib.figure import Figure

    _note(out, config.seed, metrics | {"gates": gate.round(4).tolist()})
    lines = (out / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    *curves, heads = figure.subplots(1, 3)
    names = {"distance": "squared distance", "gate": "mean gate"}
    for curve, (name, said) in zip(curves, names.items(), strict=True):
        curve.plot([r["step"] for r in records], [r[name] for r in records])
        curve.set(xlabel="step", ylabel=said, ylim=(0, None))
    image = heads.imshow(gate, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    heads.set(title="gates", xlabel="kv head", ylabel="layer")
    heads.locator_params(integer=True)
    figure.colorbar(image, ax=heads)
    figure.savefig(out / "curve.png", dpi=120)


def _note(out: Path, seed: int, metrics: dict) -> None:
    """Adds the seed and the last metrics to train.json."""
    path = out / "train.json"
    record = json.loads(path.read_text()) | {"seed": seed, "metrics": metrics}
    path.write_text(json.dumps(record, indent=2) + "\n")


def draw_curve(log: Path, picture: Path) -> None:
    """Draws loss and the share of exact answers by length, over steps."""
    # Here, because it is slow to import and nothing else in training needs it.
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, exact_axes = figure.subplots(1, 2)
    names = sorted({name for record in records for name in record})
    for name in names:
        points = [(r["step"], r[name]) for r in records if name in r]
        if name == "loss":
            loss_axes.plot(*zip(*points, strict=True))
        elif name.startswith("exact_"):
            label = f"{name.removeprefix('exact_')} tokens"
            exact_axes.plot(*zip(*points, strict=True), label=label)
    loss_axes.set(xlabel="step", ylabel="weighted cross-entropy (nats)", yscale="log")
    exact_axes.set(xlabel="step", ylabel="answers exactly right", ylim=(0, 1.02))
    exact_axes.legend()
    figure.savefig(picture, dpi=120)
