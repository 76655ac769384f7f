"""A run learns, stops, goes on to the same bits, and refuses another config."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load as load_model
from jaxkv.params import take_apart
from jaxkv.train import loop
from jaxkv.train.checkpoint import Checkpoints
from jaxkv.train.config import Stage, Train, load
from jaxkv.train.feeding import Documents
from jaxkv.train.optimizers import AdamW
from jaxkv.train.schedules import WarmupCosine

TINY = Train(
    model=DecoderConfig(
        width=16,
        feed_forward=16,
        layers=1,
        query_heads=2,
        kv_heads=1,
        head_dim=8,
        tie_embeddings=True,
    ),
    stages=(Stage(4, Documents(((4, 64),))), Stage(2, Documents(((2, 96),)))),
    optimizer=AdamW(rate=WarmupCosine(1e-2, warmup=1)),
    dtype="float32",
    save_every=3,
    log_every=2,
)


run = partial(loop.train, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(TINY, out)


def _weights(out):
    model, _ = load_model(out / "model")
    params, _ = take_apart(model)
    return params


def _records(out):
    lines = (out / "log.jsonl").read_text().splitlines()
    timing = ("seconds", "tokens_per_second")
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in timing} for r in records]


def _assert_same(out, other):
    mine, theirs = _weights(out), _weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_flops_are_counted_once_a_stage(tmp_path, monkeypatch):
    """Counting traces the model, which takes longer than a step of a small one."""
    counted = []

    def count(*given):
        counted.append(given)
        return 1.0

    monkeypatch.setattr(loop, "step_flops", count)
    run(TINY, tmp_path)
    assert len(counted) == len(TINY.stages)


def test_run_leaves_a_model_and_its_numbers(whole):
    out, metrics = whole
    steps = [record["step"] for record in _records(out)]
    assert steps == [2, 4, 6] and metrics["step"] == 6
    assert {"loss", "words", "exact_96"} <= metrics.keys()
    assert "exact_64" in _records(out)[0]
    record = json.loads((out / "train.json").read_text())
    assert record["metrics"] == metrics and record["seed"] == TINY.seed
    assert (out / "curve.png").stat().st_size > 1000
    _, tokenizer = load_model(out / "model")
    assert tokenizer.encode("the").ids == [1, tokenizer.token_to_id("the")]


def test_loss_falls(whole):
    out, _ = whole
    losses = [record["loss"] for record in _records(out)]
    assert losses[-1] < losses[0]


def test_killed_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch):
    """Killed after step 5, with a checkpoint of step 3 and a log up to step 4."""
    make_step, taken = loop.make_step, []

    def dying(*arguments):
        step = make_step(*arguments)

        def mortal(state, fixed, number, given):
            if number == 5:
                raise KeyboardInterrupt
            taken.append(int(number))
            return step(state, fixed, number, given)

        return mortal

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, tmp_path)
    assert taken == [0, 1, 2, 3, 4]
    run(TINY, tmp_path)
    _assert_same(tmp_path, whole[0])
    # The means of the log that spans the kill begin at the checkpoint.
    assert [record["step"] for record in _records(tmp_path)] == [2, 4, 6]
    assert _records(tmp_path)[-1] == _records(whole[0])[-1]


def test_run_out_of_time_goes_on_to_the_same_bits(whole, tmp_path):
    assert run(TINY, tmp_path, minutes=0.0)["step"] == 2
    assert run(TINY, tmp_path)["step"] == 6
    _assert_same(tmp_path, whole[0])


def test_finished_run_is_left_alone(whole):
    out, metrics = whole
    assert run(TINY, out) == metrics


def test_other_config_is_refused(whole):
    with pytest.raises(ValueError, match="another optimizer, seed"):
        run(replace(TINY, seed=1, optimizer=AdamW()), whole[0])


def test_checkpoints_restore_what_they_saved(tmp_path):
    state = {"a": jax.numpy.arange(3.0), "b": {"c": jax.numpy.int32(7)}}
    empty = jax.tree.map(jax.numpy.zeros_like, state)
    with Checkpoints(tmp_path / "c") as saved:
        assert saved.restore(empty) == (0, empty)
        for step in (1, 2, 3):
            saved.save(step, state)
    with Checkpoints(tmp_path / "c") as saved:
        step, restored = saved.restore(empty)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    assert loop.main(["no-such-run", str(tmp_path)]) == 2
    assert loop.main([str(tmp_path / "no.py"), str(tmp_path)]) == 2
    assert loop.main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "no-such-run" in lines[0]


def test_demo_config_loads_and_fits():
    config = load("configs/train/demo.py")
    assert all(60_000 <= stage.feed.tokens <= 70_000 for stage in config.stages)


def test_config_is_checked():
    with pytest.raises(ValueError, match="512 words"):
        replace(TINY, model=replace(TINY.model, vocabulary=100))
    with pytest.raises(ValueError, match="max_position=64"):
        replace(TINY, model=replace(TINY.model, max_position=64))
    for change in (
        {"micro": 0},
        {"log_every": 0},
        {"remat": "some"},
        {"dtype": "int8"},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(TINY, **change)
