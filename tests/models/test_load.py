"""jaxkv.load: every kind of name, and one clear sentence for the others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxkv.export.formats import export
from jaxkv.models import load as module
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import save
from jaxkv.models.load import dtype_of, load
from jaxkv.models.presets import random_decoder

SMALL = DecoderConfig(vocabulary=64, width=32, feed_forward=48, layers=1, head_dim=8)


@pytest.fixture
def folder(tmp_path):
    save(random_decoder(SMALL, 0), None, tmp_path / "model")
    return tmp_path / "model"


def test_folder(folder):
    model, tokenizer = load(folder)
    assert model.config == SMALL and tokenizer is None
    assert model.table[...].dtype == jnp.float32
    assert load(str(folder), jnp.bfloat16)[0].table[...].dtype == jnp.bfloat16


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_what_a_model_is_stored_as(form, tmp_path):
    model = random_decoder(SMALL, 0)
    for dtype in ("float32", "bfloat16"):
        export(model, None, tmp_path / dtype, format=form, dtype=dtype)
        assert dtype_of(tmp_path / dtype).name == dtype


def test_what_those_are_stored_as_that_are_no_folder():
    names = ("llama-3.1-8b", "demo", "demo-matryoshka")
    assert {dtype_of(name).name for name in names} == {"bfloat16"}


def test_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match="it has no config.json"):
        load(tmp_path)


def test_preset(monkeypatch):
    monkeypatch.setattr(module, "preset", {"llama-3.1-8b": SMALL}.get)
    model, tokenizer = load("llama-3.1-8b")
    assert model.config == SMALL and tokenizer is None
    assert model.table[...].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "asks for 3 devices"),
        ("tensor=8", "tensor axis of 8 does not divide the model's 4 kv heads; give"),
        ("heads=8", "names the axis 'heads'"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told(mesh, message, folder):
    if jax.device_count() != 8:
        pytest.skip("needs eight devices")
    with pytest.raises(ValueError, match=message):
        load(folder, mesh=mesh)


def test_heads_that_do_not_group():
    with pytest.raises(ValueError, match="not a multiple"):
        replace(SMALL, query_heads=3, kv_heads=2)
