"""The training loop: one jitted step, documents drawn inside it, resumable to the bit.

    state = {params, optimizer};  state <- step(state, fold_in(key, number of the step))

Everything a step depends on is the state and its number, so a run that is killed goes
on from its last checkpoint as if it had not been.

    python -m jaxkv.train.loop NAME|FILE OUT [MINUTES]
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from rich.console import Console
from rich.progress import Progress

from jaxkv.mesh import make_mesh, rows_over
from jaxkv.models.decoder import Decoder
from jaxkv.params import Params, take_apart
from jaxkv.rules import shardings
from jaxkv.train.checkpoint import Checkpoints
from jaxkv.train.config import Stage, Train, TrainGates, load
from jaxkv.train.documents import documents
from jaxkv.train.objective import weighted_loss
from jaxkv.train.recipe import FAMILIES
from jaxkv.train.report import write_report

State = dict  # {"params": Params, "optimizer": what optax keeps}
Step = Callable[[State, Array], tuple[State, dict[str, Array]]]
Metrics = dict[str, float | int]


def train(config: Train, out: Path, minutes: float | None = None) -> Metrics:
    """Trains, or goes on training, and writes `out`; returns the last metrics.

    `out` gets checkpoints/, log.jsonl, train.json, curve.png and model/, a Hugging Face
    folder. `minutes` stands in for `config.minutes`.

    Raises:
      ValueError: `out` holds a run of another config.
      FloatingPointError: the loss is not a number.
    """
    minutes = config.minutes if minutes is None else minutes
    out.mkdir(parents=True, exist_ok=True)
    claim(out, config)
    rngs = nnx.Rngs(config.seed)
    mesh = make_mesh(config.mesh, config.axis_types)
    params, rebuild = take_apart(Decoder(config.model, rngs=rngs, dtype=jnp.float32))
    state = {"params": params, "optimizer": optimizer(config).init(params)}
    state = jax.device_put(state, shardings(mesh, state))
    with jax.set_mesh(mesh), Checkpoints(out / "checkpoints") as saved:
        start, state = saved.restore(state)
        log = Log(out / "log.jsonl", start, config.steps)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        with log:
            for number, stage, step in _remaining(config, rebuild, start):
                # pyrefly: ignore[bad-argument-type] - a scalar of numpy will do
                state, counts = step(state, np.int32(number))
                done = number + 1
                log.add(counts, stage.tokens)
                late = False
                if done % config.log_every == 0 or done == config.steps:
                    log.write(done)
                    late = deadline is not None and time.monotonic() > deadline
                if done % config.save_every == 0 or done == config.steps or late:
                    saved.save(done, state)
                if late:
                    break
    write_report(out, config, rebuild(state["params"]), log.last)
    return log.last


def optimizer(config: Train) -> optax.GradientTransformation:
    """AdamW under a cosine, its gradient clipped; vectors do not decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup, config.steps - 1),
        config.steps,
        config.learning_rate * config.final,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            # pyrefly: ignore[missing-attribute] - params are a flat dict
            mask=lambda params: {name: p.ndim > 1 for name, p in params.items()},
        ),
    )


def make_step(
    config: Train, stage: Stage, rebuild: Callable[[Params], Decoder]
) -> Step:
    """The jitted (state, number) -> (state, counts); it consumes the state.

    Counts are pairs (sum, of how much), to be added up over steps and divided.
    """
    seed = jax.random.key(config.seed)
    update = optimizer(config).update
    rows = rows_over(jax.sharding.get_abstract_mesh())

    def loss(params, batches, weight):
        model = rebuild(params)
        total, counts = 0.0, {}
        for (_, length), batch in zip(stage.shapes, batches, strict=True):
            part, counts[length] = weighted_loss(model, batch, jnp.dtype(config.dtype))
            total += part
        return total / weight, counts

    def step(state, number):
        key = jax.random.fold_in(seed, number)
        batches = [
            documents(jax.random.fold_in(key, i), *shape, stage.recipe, rows)
            for i, shape in enumerate(stage.shapes)
        ]
        weight = sum(batch["weight"].sum() for batch in batches)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (mean, counts), grads = gradient(state["params"], batches, weight)
        # Optax raises Adam's decay to an integer power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            change, kept = update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], change)
        totals = {f"exact_{length}": c["answers"] for length, c in counts.items()}
        for length, c in counts.items():
            totals |= {f"{name}_{length}": c[name] for name in FAMILIES}
        totals["words"] = sum(c["words"] for c in counts.values())
        totals["loss"] = jnp.stack([mean * weight, weight])
        state = {"params": params, "optimizer": kept}
        return state, totals

    return jax.jit(step, donate_argnums=0)


class Log:
    """Adds up counts on the device; writes their means to a file and a progress bar.

    Nothing waits for the device between two calls of `write`.
    """

    def __init__(self, path: Path, start: int, steps: int) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        records = [json.loads(line) for line in lines]
        records = [record for record in records if record["step"] <= start]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.last: Metrics = records[-1] if records else {}
        self._path, self._counts, self._tokens = path, [], 0
        self._before = self.last.get("seconds", 0.0)
        self._began = self._since = time.monotonic()
        self._bar = Progress(console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=steps, completed=start)

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, counts: dict[str, Array], tokens: int) -> None:
        """Takes one step's counts, still on the device."""
        self._counts.append(counts)
        self._tokens += tokens

    def write(self, step: int) -> None:
        """Means since the last call: loss, share of right words, of exact answers."""
        fetched = jax.device_get(self._counts)
        now = time.monotonic()
        record = {
            "step": step,
            "seconds": round(self._before + now - self._began, 2),
            "tokens_per_second": round(self._tokens / (now - self._since)),
        }
        for name in sorted({name for counts in fetched for name in counts}):
            # pyrefly: ignore[not-iterable] - pairs of arrays, one at least
            value, of = sum(counts[name] for counts in fetched if name in counts)
            record[name] = round(float(value / max(of, 1e-9)), 5)
        self._counts, self._tokens, self._since, self.last = [], 0, now, record
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        exact = {name: value for name, value in record.items() if "exact" in name}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in exact.items())
        self._bar.update(
            self._task,
            completed=step,
            description=f"loss {record['loss']:.3f}  {shown}",
        )
        if not np.isfinite(record["loss"]):
            raise FloatingPointError(f"The loss is {record['loss']} by step {step}.")


def _remaining(
    config: Train, rebuild: Callable[[Params], Decoder], start: int
) -> Iterator[tuple[int, Stage, Step]]:
    """(its number, its stage, the jitted step) for each step from `start`."""
    first = 0
    for stage in config.stages:
        step = make_step(config, stage, rebuild)
        for number in range(max(first, start), first + stage.steps):
            yield number, stage, step
        first += stage.steps


def claim(out: Path, config: Train | TrainGates) -> None:
    """Writes the config to `out`, or checks that it is the one that is there."""
    path = out / "train.json"
    mine = json.loads(json.dumps(asdict(config)))
    if path.is_file():
        theirs = json.loads(path.read_text())["config"]
        differ = [name for name in mine if mine[name] != theirs.get(name)]
        if set(differ) - {"minutes", "save_every"}:
            raise ValueError(
                f"{out} holds a run with another {', '.join(differ)}; "
                "choose another folder for this one."
            )
    path.write_text(json.dumps({"config": mine}, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    """`NAME|FILE OUT [MINUTES]`; returns the exit code, 2 for bad input."""
    try:
        if not 2 <= len(arguments) <= 3:
            raise ValueError(
                "Usage: python -m jaxkv.train.loop NAME|FILE OUT [MINUTES]"
            )
        name, out, *minutes = arguments
        config = load(name)
        if not isinstance(config, Train):
            raise ValueError(f"{name} trains gates; run jaxkv train {name}.")
        train(config, Path(out), float(minutes[0]) if minutes else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
