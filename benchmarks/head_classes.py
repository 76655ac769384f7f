"""What the heads of a model do, and what it forgets without those that look back.

    python benchmarks/head_classes.py --model demo --samples 8

Prints the echo and induction score of every kv head (RazorAttention's probe), then the
needle scores from full caches of the model whole, without the 15 % of kv heads that
rank highest by max(echo, induction), and without as many drawn at random. A head is
taken out by zeroing its block of W_o. Writes results/head_classes_NAME.json and .png.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxkv.calibrate import head_classes
from jaxkv.evaluate.compare import compare
from jaxkv.models.load import load

SHARE = 0.15
TASKS = ["single_needle_dense", "multi_key_dense", "two_hop_dense"]
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse()
    model, tokenizer = load(options.model)
    scores = head_classes.make(model, tokenizer)
    best_LK = np.maximum(scores["echo"], scores["induction"])
    show(scores)
    count = round(SHARE * best_LK.size)
    top = np.argsort(-best_LK.ravel(), kind="stable")[:count]
    runs = {"no head": [[]], f"top {count}": [top.tolist()]}
    draws = [
        np.random.default_rng(seed).choice(best_LK.size, count, replace=False).tolist()
        for seed in range(options.draws)
    ]
    runs[f"random {count}"] = draws
    rest = np.setdiff1d(np.arange(best_LK.size), top)
    others = [
        np.random.default_rng(seed).choice(rest, count, replace=False).tolist()
        for seed in range(options.draws)
    ]
    runs[f"random {count} of the rest"] = others
    found = []
    for name, masks in runs.items():
        for heads in masks:
            found.append(measure(model, tokenizer, name, heads, options))
            print(json.dumps(found[-1]), flush=True)
    record = {
        "model": options.model,
        "tasks": options.tasks,
        "context": options.context,
        "samples": options.samples,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "share": SHARE,
        **{name: array.tolist() for name, array in scores.items()},
        "runs": found,
    }
    name = f"head_classes_{Path(options.model).name}"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, RESULTS / f"{name}.png")
    print(f"Written: {RESULTS / name}.json, .png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--samples", type=int, default=8, help="contexts a task")
    parser.add_argument("--draws", type=int, default=4, help="random sets of heads")
    return parser.parse_args()


def show(scores: dict[str, np.ndarray]) -> None:
    """The scores by layer and head, and how they fall into two classes."""
    for name, array_LK in scores.items():
        print(f"{name} (rows are layers, columns kv heads)")
        for layer, row in enumerate(array_LK):
            print(f"  {layer:>3}  " + "  ".join(f"{x:.3f}" for x in row))
        ordered = np.sort(array_LK.ravel())[::-1]
        gap = int(np.argmax(ordered[:-1] - ordered[1:]))
        print(
            f"  {gap + 1} of {ordered.size} heads above the widest gap, "
            f"{ordered[gap + 1]:.3f} to {ordered[gap]:.3f}; median "
            f"{np.median(ordered):.3f}",
            flush=True,
        )


def without(model, heads: list[int]):
    """A copy of the model whose flat (layer, kv head) indices `heads` add nothing."""
    copy = nnx.merge(*nnx.split(model))
    K = model.config.kv_heads
    for layer, attention in enumerate(block.attention for block in copy.layers):
        mine = [head % K for head in heads if head // K == layer]
        if mine:
            out_KGHD = attention.out[...]
            attention.out = nnx.Param(out_KGHD.at[np.array(mine)].set(0))
    return copy


def measure(model, tokenizer, name, heads, options) -> dict:
    """The needle score of every task without some heads, from full caches."""
    began = time.perf_counter()
    table = compare(
        (without(model, heads), tokenizer),
        methods=["full"],
        tasks=options.tasks,
        context=options.context,
        samples=options.samples,
        question="agnostic",
        batch=options.samples,
    )
    (row,) = table.rows
    return {
        "run": name,
        "heads": sorted(heads),
        "score": row.score,
        "tasks": row.tasks,
        "seconds": round(time.perf_counter() - began, 1),
    }


def draw(record: dict, picture: Path) -> None:
    """Both scores of every head, and the needle score of every run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    *maps, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.4])
    for axes, name in zip(maps, ("echo", "induction"), strict=True):
        image = axes.imshow(record[name], vmin=0, aspect="auto", cmap="viridis")
        axes.set(title=name, xlabel="kv head", ylabel="layer")
        axes.locator_params(integer=True)
        figure.colorbar(image, ax=axes)
    names = list(dict.fromkeys(run["run"] for run in record["runs"]))
    for place, name in enumerate(names):
        scores = [run["score"] for run in record["runs"] if run["run"] == name]
        bars.bar(place, np.mean(scores), color="0.75")
        bars.plot([place] * len(scores), scores, "k_")
    bars.set(title="needle score, full cache", ylim=(0, 1.05), ylabel="score")
    bars.set_xticks(
        range(len(names)),
        ["without\n" + n.replace(" of", "\nof") for n in names],
        fontsize=8,
    )
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
