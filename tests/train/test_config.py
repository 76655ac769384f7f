"""Every recipe loads, says what it takes, and trains parameters that are there."""

import importlib

import jax
import pytest

from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import preset
from jaxkv.train.config import PACKAGE, known, load
from jaxkv.train.parts import describe


def shapes(name):
    """Whether a recipe's model needs no folder that a command makes first."""
    model = load(name).model
    return isinstance(model, DecoderConfig) or model == "demo" or preset(model)


@pytest.mark.parametrize("name", known())
def test_it_says_how_it_is_run_and_what_comes_of_it(name):
    said = importlib.import_module(f"{PACKAGE}.{name}").__doc__ or ""
    assert f"jaxkv train {name}" in said
    assert all(f"\n{word} " in said for word in ("Command", "Device", "Expected"))
    assert load(name).total > 0


@pytest.mark.parametrize("name", [name for name in known() if shapes(name)])
def test_its_parts_are_a_model_s(name):
    config = load(name)
    parts = describe(config)
    assert parts.trained <= set(parts.shapes)
    assert any(x.size for x in jax.tree.leaves(parts.shapes))
    if config.add_on is not None and config.trainable == ("add_on.*",):
        assert all(path.startswith("add_on.") for path in parts.trained)
