"""Random decoders of published shapes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.mesh import make_mesh
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import preset, preset_names, random_decoder
from jaxkv.params import take_apart
from jaxkv.rules import shardings

SMALL = DecoderConfig(vocabulary=64, width=32, feed_forward=48, layers=3, head_dim=8)


def test_names():
    assert preset("llama-3.1-8b") is preset("llama_3_1_8b") is preset("Llama-3-1-8B")
    assert preset("llama-9") is None and preset("os") is None and preset("") is None
    assert set(preset_names()) >= {"llama-3-1-8b", "llama-3-2-1b"}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-3.1-8b", 8_030_261_248), ("llama-3.2-1b", 1_235_814_400)],
)
def test_published_parameter_counts(name, parameters):
    config = preset(name)
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))]
    assert sum(sizes) == parameters


def test_random_decoder():
    model = random_decoder(SMALL, 0)
    state = nnx.to_pure_dict(nnx.state(model))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state))
    assert np.isfinite(np.asarray(model(jnp.zeros((1, 5), int)), np.float32)).all()
    assert abs(float(jnp.std(model.table[...].astype(jnp.float32))) - 0.02) < 0.002
    first, second = (model.layers[i].mlp.down[...] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_a_seed_is_one_model():
    one, same, other = (random_decoder(SMALL, seed).table[...] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_it_is_the_same_on_a_mesh():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = make_mesh("fsdp=4,tensor=2", "auto", jax.devices()[:8])
    one, other = (
        take_apart(random_decoder(SMALL, 1, mesh=on))[0] for on in (None, mesh)
    )
    lies = shardings(mesh, one)
    for path, x in one.items():
        np.testing.assert_array_equal(x, other[path])
        assert other[path].sharding == lies[path]
