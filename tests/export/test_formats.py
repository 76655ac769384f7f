"""Formats of export: what is written is the model, and what cannot be is refused."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.export.formats import FORMATS, export
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load, save
from jaxkv.models.frequencies import RopeScaling, Yarn
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import ConvolutionalSizes, LatentSizes, LowRankSizes

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
YARN = Yarn(4.0, 64, 32.0, 1.0, 0.0, 0.0)
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


LOW_RANK = LowRankSizes((2,) * GROUPED.kv_heads, (3,) * GROUPED.kv_heads)
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
    "convolutions": (
        replace(CONFIG, attention=(ConvolutionalSizes(), None)),
        "hf",
        "use the model with jaxkv",
    ),
    "low rank": (
        replace(GROUPED, attention=(LOW_RANK,) * GROUPED.layers),
        "hf",
        "have low-rank attention, which no other program reads",
    ),
    "head norms": (replace(CONFIG, qk_norm=True), "deepseek", "qk_norm=True"),
    "scaling": (
        replace(GROUPED, rope_scaling=YARN),
        "hf",
        "LlamaForCausalLM cannot have RoPE scaled by Yarn",
    ),
    "format": (GROUPED, "onnx", "no format 'onnx'"),
}


@pytest.mark.parametrize(("config", "format", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(config, format, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export(fresh(config), None, tmp_path / "out", format=format)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_what_no_format_takes(format, tmp_path):
    """A dtype that no weights have, and a folder that is there."""
    model = fresh(CONFIG if format == "deepseek" else GROUPED)
    for dtype in ("int8", "float12"):
        with pytest.raises(ValueError, match=f"dtype={dtype} cannot be saved; give"):
            export(model, None, tmp_path / "out", format=format, dtype=dtype)
        assert not list(tmp_path.iterdir())
    there = tmp_path / "there"
    there.mkdir()
    (there / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="it already exists"):
        export(model, None, there, format=format)
    assert [x.name for x in tmp_path.rglob("*")] == ["there", "notes.txt"]


def test_what_vllm_reads_otherwise_is_told(tmp_path):
    """Where it takes the config for another; nothing where it does not."""
    notes = {}
    for name, sizes, scaling in (
        ("well", LATENT, YARN),
        ("damaged", replace(LATENT, nope_dim=4), None),
        ("llama3", LATENT, RopeScaling(8.0, 1.0, 4.0, 64)),
    ):
        config = replace(CONFIG, attention=(sizes,) * 2, rope_scaling=scaling)
        out = tmp_path / name
        notes[name] = export(fresh(config), None, out, format="deepseek")
        assert load(out)[0].config.rope_scaling == scaling
    assert notes["well"] == []
    (damaged,), (llama3,) = notes["damaged"], notes["llama3"]
    assert "qk_nope_head_dim and qk_rope_head_dim are both 4" in damaged
    assert "as YaRN" in llama3


def test_stop_tokens_go_with_the_model(tmp_path):
    for stops in ((), (3,), (3, 7)):
        out = tmp_path / f"{len(stops)}"
        model = fresh(replace(CONFIG, stop_tokens=stops))
        export(model, None, out, format="deepseek")
        assert load(out)[0].config.stop_tokens == stops
        said = json.loads((out / "generation_config.json").read_text())
        one = stops[0] if len(stops) == 1 else list(stops) or None
        assert said["eos_token_id"] == one
