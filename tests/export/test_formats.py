"""Formats of export: what is written is the model, and what cannot be is refused."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.cli.main import main
from jaxkv.export.formats import export
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load, save
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LatentSizes

LATENT = LatentSizes(rank=12, rope_dim=4, nope_dim=6, value_dim=8, query_rank=10)
GROUPED = DecoderConfig(
    vocabulary=40,
    width=24,
    feed_forward=36,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    initial_scale=0.2,
)
CONFIG = replace(GROUPED, attention=(LATENT, LATENT))
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 30)))


def fresh(config):
    return random_decoder(config, 0, jnp.float32)


@pytest.mark.parametrize(
    ("config", "format"), [(GROUPED, "hf"), (CONFIG, "deepseek")], ids=["hf", "ds"]
)
def test_what_is_written_is_the_model(config, format, tmp_path):
    model = fresh(config)
    export(model, None, tmp_path / "out", format=format)
    again, _ = load(tmp_path / "out")
    family = {"hf": "LlamaForCausalLM", "deepseek": "DeepseekV3ForCausalLM"}[format]
    assert again.config.architecture == family
    np.testing.assert_array_equal(again(IDS), model(IDS))


def test_a_converted_model_comes_back_from_its_own_folder(tmp_path):
    """With layers of two kinds and of two sizes, which no family has."""
    sizes = replace(LATENT, rank=10, norm=False, query_rank=None)
    config = replace(CONFIG, layers=3, attention=(None, LATENT, sizes))
    model = fresh(config)
    save(model, None, tmp_path / "own")
    again, _ = load(tmp_path / "own")
    assert again.config == config
    np.testing.assert_array_equal(again(IDS), model(IDS))


REFUSED = {
    "latents": (CONFIG, "hf", "give --format deepseek"),
    "grouped": (GROUPED, "deepseek", "attend with grouped queries"),
    "hybrid": (
        replace(CONFIG, attention=(LATENT, None)),
        "deepseek",
        "attend with grouped queries",
    ),
    "ranks": (
        replace(CONFIG, attention=(LATENT, replace(LATENT, rank=8))),
        "deepseek",
        "different sizes",
    ),
    "no norm": (
        replace(CONFIG, attention=(replace(LATENT, norm=False),) * 2),
        "deepseek",
        "not normed",
    ),
    "head norms": (replace(CONFIG, qk_norm=True), "deepseek", "qk_norm=True"),
    "format": (GROUPED, "onnx", "no format 'onnx'"),
}


@pytest.mark.parametrize(("config", "format", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(config, format, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export(fresh(config), None, tmp_path / "out", format=format)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    save(fresh(CONFIG), None, tmp_path / "model")
    asked = ["export", "--model", str(tmp_path / "model"), "--out"]
    assert main([*asked, str(tmp_path / "hf")]) == 2
    assert "give --format deepseek" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "ds"), "--format", "deepseek"]) == 0
    assert str(tmp_path / "ds") in capsys.readouterr().out
    again, _ = load(tmp_path / "ds", jnp.bfloat16)
    assert again.config.sizes(1) == LATENT
    assert main([*asked, str(tmp_path / "ds"), "--format", "deepseek"]) == 2
    assert "already exists" in capsys.readouterr().err
