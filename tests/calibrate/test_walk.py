"""walk: what a look sees is what the model's own layers see."""

import jax.numpy as jnp
import numpy as np

from jaxkv.calibrate.walk import walk
from tests.tiny import tiny_model, tiny_prompts


def _look(q_SNH, k_SKH):
    return q_SNH, k_SKH


def test_a_look_sees_every_layer_as_the_model_runs_it():
    model = tiny_model()
    token_ids = jnp.asarray([tiny_prompts([40])[0], tiny_prompts([64])[0][:40]])
    position = jnp.broadcast_to(jnp.arange(40), (2, 40))
    x, layers = model.embed(token_ids), 0
    for layer, seen in zip(model.layers, walk(model, token_ids, _look), strict=True):
        q, k, _ = layer.attention.entries(layer.attention_norm(x), position)
        for ours, theirs in zip(seen, (q, k), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        x, layers = layer(x, position), layers + 1
    assert layers == model.config.layers == 2
