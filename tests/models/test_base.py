"""An add-on is its base and what was changed of it, and of no other base."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.convert.x_ecomla import XEcoMLA
from jaxkv.export.add_on import write_add_on
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load, save
from jaxkv.models.presets import random_decoder
from jaxkv.params import take_apart

SMALL = DecoderConfig(
    vocabulary=40,
    width=24,
    feed_forward=36,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    initial_scale=0.2,
)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 30)))


@pytest.fixture
def base(tmp_path):
    model = random_decoder(SMALL, 0, jnp.float32)
    save(model, None, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def add_on(base, tmp_path):
    converted = XEcoMLA(rank=8, rope_dim=4, layers=(1,))(load(base)[0])
    write_add_on(converted, None, tmp_path / "add_on", base=base)
    return tmp_path / "add_on", converted


def test_it_is_the_model_and_holds_what_differs(base, add_on):
    folder, model = add_on
    again, _ = load(folder)
    assert again.config == model.config
    np.testing.assert_array_equal(again(IDS), model(IDS))
    whole, own = (path / "model.safetensors" for path in (base, folder))
    assert own.stat().st_size < whole.stat().st_size / 2


def test_both_folders_can_be_moved_together(base, add_on, tmp_path):
    folder, model = add_on
    (tmp_path / "elsewhere").mkdir()
    for path in (base, folder):
        path.rename(tmp_path / "elsewhere" / path.name)
    again, _ = load(tmp_path / "elsewhere" / "add_on")
    np.testing.assert_array_equal(again(IDS), model(IDS))


@pytest.mark.parametrize("part", ["norm.scale", "layers.0.mlp.down"])
def test_another_base_is_refused(part, base, add_on, tmp_path):
    """One whose norm, or a matrix of one layer, moved by a hair."""
    folder, _ = add_on
    base.rename(tmp_path / "before")
    params, again = take_apart(load(tmp_path / "before")[0])
    save(again(params | {part: params[part] * 1.01}), None, base)
    with pytest.raises(ValueError, match="is an add-on of another"):
        load(folder)


def test_a_base_that_is_gone_is_named(base, add_on, tmp_path):
    folder, _ = add_on
    base.rename(tmp_path / "before")
    with pytest.raises(ValueError, match="'../base' is no model; give 'demo'"):
        load(folder)


def test_an_add_on_is_no_base(add_on, tmp_path):
    folder, model = add_on
    with pytest.raises(ValueError, match="is itself an add-on"):
        write_add_on(model, None, tmp_path / "more", base=folder)


@pytest.mark.parametrize("said", [None, "demo", {}, {"model": "demo"}, {"rows": 1}])
def test_a_base_that_is_none_is_refused(said, add_on):
    folder, _ = add_on
    path = folder / "jaxkv.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": said}))
    with pytest.raises(ValueError, match="names no model and no sha256"):
        load(folder)


def test_a_model_of_which_nothing_is_the_base_s_is_refused(base, tmp_path):
    other = random_decoder(replace(SMALL, width=32), 1, jnp.float32)
    with pytest.raises(ValueError, match="tensors is .*base's, so that it would be no"):
        write_add_on(other, None, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()
