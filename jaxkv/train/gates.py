"""Gates: which kv heads need all tokens, learned on a frozen model (DuoAttention).

DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads,
arXiv 2410.10819. Each kv head has one gate alpha, 1 at first, and attends as

    o = alpha full + (1 - alpha) streaming(sinks, recent)

    loss = mean_t mean_d (h_td - h'_td)^2 + sparsity * mean alpha

h and h' are the last normed hidden states without and with gates, at the places t that
predict a word of an answer. After each step gates are clipped to [0, 1].
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxkv.attention.causal import causal_attention
from jaxkv.attention.streaming import streaming_attention
from jaxkv.calibrate.store import remember, save, user_folder
from jaxkv.evaluate.language import VOCABULARY
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.load import load as load_model
from jaxkv.train.checkpoint import Checkpoints
from jaxkv.train.config import TrainGates
from jaxkv.train.documents import documents
from jaxkv.train.loop import Log, Metrics, State, claim
from jaxkv.train.report import write_gates_report

Step = Callable[[Decoder, State, Array], tuple[State, dict[str, Array]]]


def train_gates(config: TrainGates, out: Path) -> Metrics:
    """Trains gates, or goes on; writes `out` and keeps them for `calibration`.

    `out` gets checkpoints/, log.jsonl, train.json, curve.png and
    gates-HASH.safetensors, which is also written to the user's calibration folder once
    all steps are done. Returns the last metrics.

    Raises:
      ValueError: `out` holds a run of another config, or the model is none of ours.
      FloatingPointError: the loss is not a number.
    """
    model, _ = load_model(config.model, config.dtype)
    _check(model, config)
    out.mkdir(parents=True, exist_ok=True)
    claim(out, config)
    params = {"gate": jnp.ones((model.config.layers, model.config.kv_heads))}
    state = {"params": params, "optimizer": optimizer(config).init(params)}
    minutes = config.minutes
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with Checkpoints(out / "checkpoints") as saved:
        start, state = saved.restore(state)
        step, done = make_step(config), start
        with Log(out / "log.jsonl", start, config.steps) as log:
            for number in range(start, config.steps):
                # pyrefly: ignore[bad-argument-type] - a scalar of numpy will do
                state, counts = step(model, state, np.int32(number))
                done = number + 1
                log.add(counts, config.rows * config.length)
                late = False
                if done % config.log_every == 0 or done == config.steps:
                    log.write(done)
                    late = deadline is not None and time.monotonic() > deadline
                if done % config.save_every == 0 or done == config.steps or late:
                    saved.save(done, state)
                if late:
                    break
    arrays = {"gate": np.asarray(state["params"]["gate"])}
    save(out, model, "gates", arrays)
    if done == config.steps:
        remember(model, "gates", arrays)
        save(user_folder(), model, "gates", arrays)
    write_gates_report(out, config, arrays["gate"], log.last)
    return log.last


def optimizer(config: TrainGates) -> optax.GradientTransformation:
    """AdamW without decay; its rate rises, stays and falls."""
    fifth = max(config.steps // 5, 1)
    rate, least = config.learning_rate, config.learning_rate * config.final
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, fifth),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, least, fifth),
        ],
        [fifth, config.steps - fifth],
    )
    return optax.adamw(schedule, weight_decay=0.0)


def make_step(config: TrainGates) -> Step:
    """The jitted (model, state, number) -> (state, counts); it consumes the state.

    Counts are pairs (sum, of how much), to be added up over steps and divided.
    """
    seed = jax.random.key(config.seed)
    update = optimizer(config).update

    def step(model, state, number):
        key = jax.random.fold_in(seed, number)
        batch = documents(key, config.rows, config.length, config.recipe)
        params = state["params"]
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, distance), slope = gradient(params["gate"], model, batch, config)
        # Optax raises Adam's decay to an integer power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            change, kept = update({"gate": slope}, state["optimizer"], params)
        params = optax.apply_updates(params, change)
        params = jax.tree.map(lambda gate: jnp.clip(gate, 0.0, 1.0), params)
        means = {"loss": value, "distance": distance, "gate": params["gate"].mean()}
        counts = {name: jnp.stack([mean, 1.0]) for name, mean in means.items()}
        return {"params": params, "optimizer": kept}, counts

    return jax.jit(step, donate_argnums=1)


def loss(
    gate: Float[Array, "L K"],
    model: Decoder,
    batch: dict[str, Array],
    config: TrainGates,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, its first term) on documents; see the top of this file."""
    tokens, position = batch["tokens"], batch["position"]
    hidden = partial(gated_hidden, model, tokens, position)
    teacher_BTD = jax.lax.stop_gradient(model.hidden(tokens, position))
    student_BTD = hidden(gate, sinks=config.sinks, recent=config.recent)
    # The word at t + 1 is predicted at t, and no word of an answer comes first.
    asked_BT = jnp.roll(batch["answer"], -1, axis=1) > 0
    square_BTD = jnp.square((student_BTD - teacher_BTD).astype(jnp.float32))
    square_BT = square_BTD.mean(axis=-1)
    count = jnp.maximum(asked_BT.sum(), 1).astype(jnp.float32)
    distance = square_BT.sum(where=asked_BT) / count
    return distance + config.sparsity * jnp.abs(gate).mean(), distance


def gated_hidden(
    model: Decoder,
    token_ids: Int[Array, "B T"],
    position: Int[Array, "B T"],
    gate: Float[Array, "L K"],
    *,
    sinks: int,
    recent: int,
) -> Float[Array, "B T D"]:
    """The last normed hidden states with every kv head's attention mixed by its gate.

    Gates of 1 are the model itself.
    """

    def run(layer: Layer, x_BTD, gate_K):
        attention = layer.attention
        q, k, v = attention.entries(layer.attention_norm(x_BTD), position)
        full_BTNH = causal_attention(q, k, v)
        streaming_BTNH = streaming_attention(q, k, v, sinks=sinks, recent=recent)
        gate_N = jnp.repeat(gate_K, attention.config.group)[None, None, :, None]
        gate_N = gate_N.astype(full_BTNH.dtype)
        mixed_BTNH = gate_N * full_BTNH + (1 - gate_N) * streaming_BTNH
        x_BTD = x_BTD + attention.output(mixed_BTNH)
        return x_BTD + layer.mlp(layer.mlp_norm(x_BTD))

    x_BTD = model.embed(token_ids)
    for layer, gate_K in zip(model.layers, gate, strict=True):
        x_BTD = run(layer, x_BTD, gate_K)
    return model.norm(x_BTD)


def _check(model: Decoder, config: TrainGates) -> None:
    if model.config.vocabulary != len(VOCABULARY):
        raise ValueError(
            f"{config.model} knows {model.config.vocabulary} tokens, but gates are "
            f"trained on documents of the demo's {len(VOCABULARY)} words."
        )
    if config.length > model.config.max_position:
        raise ValueError(
            f"length={config.length} passes the model's context of "
            f"{model.config.max_position}; give that at most."
        )
