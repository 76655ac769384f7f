"""Gates: the model itself at 1, streaming at 0; runs learn, stop and go on."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.attention.streaming import streaming_attention
from jaxkv.calibrate.store import calibration, hash_of, load
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.train.add_ons.gates import GatedHeads, Gates
from jaxkv.train.config import Stage, Train
from jaxkv.train.documents import documents
from jaxkv.train.feeding import Documents
from jaxkv.train.forward import Student, forward
from jaxkv.train.loop import train
from jaxkv.train.objectives import HiddenStates, MeanKept
from jaxkv.train.objectives.base import Gave, targets
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import RiseStayFall

CONFIG = DecoderConfig(
    width=16,
    feed_forward=16,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    max_position=128,
    initial_scale=0.3,
)
GATES = Gates(sinks=2, recent=8)
DOCUMENTS = Documents(((2, 64),), Recipe(gaps=0.0), weigh="answers")
TINY = Train(
    model="demo",
    teacher="itself",
    add_on=GATES,
    trainable=("add_on.*",),
    stages=(Stage(6, DOCUMENTS),),
    objectives=(HiddenStates("last"), MeanKept(weight=10.0)),
    optimizer=AdamW(RiseStayFall(0.4), None, (0.0, 1.0), b2=0.999, weight_decay=0.0),
    dtype="float32",
    log_every=2,
    save_every=3,
)


run = partial(train, devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKV_CALIBRATION", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    """A run on the model's folder."""
    path = tmp_path_factory.mktemp("models") / "model"
    folder.save(model, None, path)
    return replace(TINY, model=str(path))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXKV_CALIBRATION", str(tmp_path_factory.mktemp("kept")))
        out = tmp_path_factory.mktemp("whole")
        return out, run(config, out)


@pytest.fixture(scope="module")
def batch():
    draw = jax.jit(documents, static_argnums=(1, 2, 3))
    return draw(jax.random.key(3), 2, 64, DOCUMENTS.recipe)


@pytest.fixture(scope="module")
def given(model, batch):
    """What a model with such gates gives; jitted."""

    def gated(gate):
        heads = GatedHeads(GATES, CONFIG)
        heads.gate[...] = gate
        student = Student(model, heads)
        return forward(student, batch["tokens"], batch["position"], None, jnp.float32)

    return jax.jit(gated)


@pytest.fixture(scope="module")
def mixed(given):
    return lambda gate: given(gate).hidden


def test_gates_of_one_are_the_model(model, batch, mixed):
    theirs = model.hidden(batch["tokens"], batch["position"])
    np.testing.assert_allclose(mixed(jnp.ones((2, 2))), theirs, rtol=1e-4, atol=1e-4)


def test_each_gate_is_its_own_heads(model, batch, mixed, monkeypatch):
    """Heads 0 of layer 0 and 1 of layer 1 stream, whichever way that is computed."""
    gate = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    layer = iter(range(CONFIG.layers))

    def by_head(q, k, v, segment):
        streams = next(layer)
        full, _ = plain(q, k, v)
        near = streaming_attention(q, k, v, sinks=GATES.sinks, recent=GATES.recent)
        streaming_N = np.arange(4) // 2 == streams
        return jnp.where(streaming_N[None, None, :, None], near, full), None

    from jaxkv.attention import by_kv_head

    plain = by_kv_head.causal_attention_and_lse
    monkeypatch.setattr(by_kv_head, "causal_attention_and_lse", by_head)
    theirs = model.hidden(batch["tokens"], batch["position"])
    np.testing.assert_allclose(mixed(gate), theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(theirs - mixed(jnp.ones((2, 2)))).max() > 0.01


def test_objectives_are_the_formula_and_their_gradient_the_slope(batch, given):
    gate = jnp.array([[0.3, 0.9], [0.5, 0.0]])
    weighted = batch | {"weight": (batch["answer"] > 0).astype(jnp.float32)}
    target, weight = targets(weighted)

    def values(gate):
        share = weight / weight.sum()
        gave = Gave(weighted, target, share, given(gate), given(jnp.ones((2, 2))))
        return HiddenStates("last")(gave).sum, MeanKept()(gave).sum

    distance, kept = values(gate)
    asked = np.asarray(batch["answer"])[:, 1:] > 0
    apart = np.asarray(given(gate).hidden - given(jnp.ones((2, 2))).hidden)
    expected = np.square(apart).mean(axis=-1)[:, :-1][asked].mean()
    assert asked.sum() > 5
    np.testing.assert_allclose(distance, expected, rtol=1e-3)
    np.testing.assert_allclose(kept, 1.7 / 4, rtol=1e-3)
    value_of = jax.jit(lambda g: jnp.add(*values(g)))
    slope = jax.jit(jax.grad(value_of))(gate)
    for place in np.ndindex(2, 2):
        step = np.zeros((2, 2), np.float32)
        step[place] = 0.02
        rise = value_of(gate + step) - value_of(gate - step)
        if gate[place] > 0:  # |gate| has no slope at 0
            np.testing.assert_allclose(slope[place], rise / 0.04, rtol=0.05, atol=1e-4)


def test_run_leaves_gates_and_their_numbers(whole, model):
    out, metrics = whole
    (file,) = out.glob("gates-*.safetensors")
    assert file.name == f"gates-{hash_of(model)}.safetensors"
    gate = load(file, model, "gates")["gate"]
    assert (gate == 0).all()  # the steps are long, and nothing else is worth 10
    records = [
        json.loads(line) for line in (out / "log.jsonl").read_text().split("\n")[:-1]
    ]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert records[-1] == metrics
    assert {"loss", "hidden_states", "mean_kept"} <= metrics.keys()
    record = json.loads((out / "train.json").read_text())
    np.testing.assert_allclose(record["metrics"]["gate"], gate, atol=1e-4)
    assert (out / "curve.png").stat().st_size > 1000


def test_a_finished_run_is_what_calibration_finds(whole, config, kept):
    out, metrics = whole
    assert run(config, out) == metrics
    again, _ = folder.load(config.model)
    (file,) = out.glob("gates-*.safetensors")
    assert [found.name for found in kept.iterdir()] == [file.name]
    found = calibration(again, "gates")["gate"]
    np.testing.assert_array_equal(found, load(file, again, "gates")["gate"])


def test_run_out_of_time_goes_on_to_the_same_bits(whole, config, model, tmp_path, kept):
    out = tmp_path / "out"
    assert run(replace(config, minutes=0.0), out)["step"] == 2
    assert not kept.exists()
    assert run(config, out)["step"] == 6
    mine, theirs = (
        load(next(o.glob("gates-*.safetensors")), model, "gates")["gate"]
        for o in (out, whole[0])
    )
    np.testing.assert_array_equal(mine, theirs)


def test_other_runs_and_models_are_refused(whole, config, tmp_path):
    with pytest.raises(ValueError, match="another seed"):
        run(replace(config, seed=1), whole[0])
    other = replace(CONFIG, vocabulary=100)
    folder.save(Decoder(other, rngs=nnx.Rngs(0)), None, tmp_path / "model")
    with pytest.raises(ValueError, match="knows 100 tokens, .* the demo's 512 words"):
        run(replace(config, model=str(tmp_path / "model")), tmp_path / "out")
    with pytest.raises(
        ValueError, match="Documents of 256 words pass the model's context"
    ):
        long = replace(DOCUMENTS, shapes=((2, 256),))
        run(replace(config, stages=(Stage(6, long),)), tmp_path / "out")
    with pytest.raises(ValueError, match="'no-such' is no model"):
        run(replace(config, model="no-such"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gates_are_checked():
    for change in ({"recent": 0}, {"sinks": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Gates(**change)


def test_packed_documents_are_refused(model, batch):
    student = Student(model, GatedHeads(GATES, CONFIG))
    ones = jnp.ones_like(batch["tokens"])
    with pytest.raises(ValueError, match="one document a row"):
        forward(student, batch["tokens"], batch["position"], ones, jnp.float32)
