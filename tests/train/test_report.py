"""What a finished run leaves is the model, with all that its folder said of it."""

from dataclasses import replace

import jax.numpy as jnp

from jaxkv.models.folder import load, save
from jaxkv.models.presets import random_decoder
from jaxkv.train.config import Stage, Train
from jaxkv.train.loop import train
from tests.train.tiny_runs import MODEL, Packed


def test_a_trained_model_still_knows_how_it_is_asked_to_repeat(tmp_path):
    config = replace(MODEL, repeat_tokens=(9, 10), stop_tokens=(3,))
    save(random_decoder(config, 0, jnp.float32), None, tmp_path / "model")
    run = Train(str(tmp_path / "model"), stages=(Stage(1, Packed()),))
    train(run, tmp_path / "run")
    trained, _ = load(tmp_path / "run" / "model")
    assert trained.config.repeat_tokens == (9, 10)
    assert trained.config.stop_tokens == (3,)
