"""The decoder's small layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.models import layers
from jaxkv.models.layers import GatedMLP, RMSNorm, lookup


@pytest.mark.parametrize("limit", [0, 8192], ids=["scatter", "one-hot"])
def test_lookup_gradient_is_the_scattered_gradient(monkeypatch, limit):
    monkeypatch.setattr(layers, "ONE_HOT_VOCABULARY", limit)
    table_key, ids_key, weight_key = jax.random.split(jax.random.key(0), 3)
    table = jax.random.normal(table_key, (11, 6))
    ids = jax.random.randint(ids_key, (2, 37), 0, 11)
    weight = jax.random.normal(weight_key, (2, 37, 6))
    ours = jax.grad(lambda t: jnp.sum(lookup(t, ids) * weight))(table)
    reference = jax.grad(lambda t: jnp.sum(t[ids] * weight))(table)
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


def test_lookup_forward():
    table = jax.random.normal(jax.random.key(0), (5, 3))
    ids = jnp.array([[4, 0], [1, 1]])
    np.testing.assert_array_equal(lookup(table, ids), np.asarray(table)[np.array(ids)])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm(dtype):
    x = (jax.random.normal(jax.random.key(0), (2, 5, 8)) * 30).astype(dtype)
    norm = RMSNorm(8, 1e-5, dtype)
    norm.scale[...] = jnp.linspace(0.5, 2.0, 8).astype(dtype)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    expected = expected * np.asarray(norm.scale[...], np.float64)
    assert norm(x).dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, tolerance)


def test_gated_mlp():
    mlp = GatedMLP(6, 10, 0.5, nnx.Rngs(0), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    gate, up = mlp.gate_up[...][:, 0], mlp.gate_up[...][:, 1]
    expected = (jax.nn.silu(x @ gate) * (x @ up)) @ mlp.down[...]
    np.testing.assert_allclose(mlp(x), expected, rtol=1e-5, atol=1e-6)
