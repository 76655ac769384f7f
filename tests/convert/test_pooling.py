"""Pooling: nothing is lost of equal heads, others become their mean."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.convert.pooling import GroupedHeads, OneHead
from jaxkv.convert.x_ecomla import XEcoMLA
from jaxkv.models.folder import load, save
from jaxkv.models.sizes import LatentSizes
from tests.convert.made import CONFIG, fresh

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 30)))
MANY = replace(CONFIG, query_heads=12, kv_heads=6, layers=2)
QWEN = replace(MANY, architecture="Qwen3ForCausalLM", qk_norm=True)


def duplicated(config, kv_heads):
    """A model whose kv heads are equal, as many at a time as will be one."""
    model = fresh(config)
    times = config.kv_heads // kv_heads
    for layer in model.layers:
        qkv = layer.attention.qkv
        first = np.asarray(qkv[...])[:, ::times, -2:]
        repeated = jnp.asarray(np.repeat(first, times, axis=1))
        qkv[...] = qkv[...].at[:, :, -2:].set(repeated)
    return model


@pytest.mark.parametrize(
    ("config", "kv_heads"),
    [(MANY, 1), (MANY, 2), (QWEN, 3)],
    ids=["one", "two", "qwen3"],
)
def test_equal_heads_lose_nothing(config, kv_heads, tmp_path):
    model = duplicated(config, kv_heads)
    way = OneHead() if kv_heads == 1 else GroupedHeads(kv_heads)
    pooled = way(model)
    assert pooled.config == replace(config, kv_heads=kv_heads)
    np.testing.assert_allclose(pooled(IDS), model(IDS), atol=1e-4)
    save(pooled, None, tmp_path / "out")  # an ordinary folder of its family
    again, _ = load(tmp_path / "out")
    assert again.config.kv_heads == kv_heads and not again.config.attention
    np.testing.assert_array_equal(again(IDS), pooled(IDS))


def test_heads_become_the_mean_of_neighbours():
    model = fresh(MANY)
    told = []
    pooled = GroupedHeads()(model, progress=lambda *a: told.append(a))
    assert pooled.config.kv_heads == 3 and len(told) == 2
    before = np.asarray(model.layers[1].attention.qkv[...])
    after = np.asarray(pooled.layers[1].attention.qkv[...])
    for new in range(3):
        pair = before[:, 2 * new : 2 * new + 2]
        np.testing.assert_allclose(
            after[:, new, -2:], pair[:, :, -2:].mean(1), atol=1e-6
        )
        np.testing.assert_array_equal(after[:, new, :2], pair[:, 0, :2])
        np.testing.assert_array_equal(after[:, new, 2:4], pair[:, 1, :2])
    assert model.config == MANY


def test_layers_of_latents_stay():
    model = XEcoMLA(12, layers=(1,))(fresh(CONFIG))
    pooled = OneHead()(model)
    assert pooled.config.rows(0) == 1 and pooled.config.sizes(1).rank == 12
    latent = model.layers[1].attention, pooled.layers[1].attention
    np.testing.assert_array_equal(latent[0].up[...], latent[1].up[...])
    assert pooled(IDS).shape == (2, 30, 40)


def test_refused():
    model = fresh(MANY)
    for kv_heads in (0, 4, 6, 12):
        with pytest.raises(ValueError, match=f"kv_heads={kv_heads} .* one of 1, 2, 3"):
            GroupedHeads(kv_heads)(model)
    with pytest.raises(ValueError, match="one kv head already"):
        OneHead()(fresh(replace(MANY, kv_heads=1)))
    sizes = LatentSizes(rank=8, rope_dim=4, nope_dim=4, value_dim=4)
    with pytest.raises(ValueError, match="No layer has grouped queries"):
        OneHead()(fresh(replace(MANY, attention=(sizes, sizes))))
