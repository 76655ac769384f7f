"""Streamed statistics: the sums of all real tokens at once; bad text in one line."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.convert.statistics import check_tokens, gram, statistics
from jaxkv.models.folder import assemble
from tests.convert.made import CONFIG, fresh, parameters_of, rows_of

ROWS = rows_of(CONFIG, (40, 7, 23))


@pytest.fixture(scope="module")
def model():
    return fresh(CONFIG)


def values(at):
    v_SKH = at.v[0]
    flat_SW = v_SKH.reshape(len(v_SKH), -1)
    return {
        "v": gram(flat_SW, at.real),
        "mean": jnp.where(at.real[:, None], flat_SW, 0).sum(axis=0),
    }


def keys_and_changes(at):
    _, k, _ = at.before_rope()
    return gram(k[0, :, 0], at.real), gram((at.out - at.x)[0], at.real)


def everything(model):
    """Of each layer, over all real tokens: input, unrotated keys, values, output."""
    found = [[] for _ in model.layers]
    for row in ROWS:
        position = jnp.arange(len(row))[None]
        x = model.embed(jnp.asarray([row]))
        for seen, layer in zip(found, model.layers, strict=True):
            attention = layer.attention
            h = layer.attention_norm(x)
            qkv = jnp.einsum("BTD,DKGH->BTKGH", h, attention.qkv[...])
            after = layer(x, position)
            seen.append((x[0], qkv[0, :, :, -2], qkv[0, :, :, -1], after[0]))
            x = after
    return [
        [np.concatenate(each).astype(float) for each in zip(*s, strict=True)]
        for s in found
    ]


def test_sums_are_those_of_all_tokens_at_once(model):
    told = []
    made = statistics(model, ROWS, values, lambda *a: told.append(a))
    other = statistics(model, ROWS, keys_and_changes)
    assert made.tokens == other.tokens == 70
    assert told == [(i, 9, "calibrate") for i in range(9)]
    for ours, pairs, (x, k, v, after) in zip(
        made.layers, other.layers, everything(model), strict=True
    ):
        v = v.reshape(70, -1)
        assert ours["v"].dtype == np.float64
        np.testing.assert_allclose(ours["v"], v.T @ v, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours["mean"], v.sum(axis=0), rtol=1e-4, atol=1e-4)
        keys, changes = k[:, 0], after - x
        np.testing.assert_allclose(pairs[0], keys.T @ keys, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(pairs[1], changes.T @ changes, rtol=1e-4, atol=1e-3)


def test_the_loss_is_the_next_token_s(model):
    found = statistics(model, ROWS, values).loss
    lost = []
    for row in ROWS:
        logits = np.asarray(model(jnp.asarray([row])), float)[0, :-1]
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        lost += np.log(p[np.arange(len(row) - 1), row[1:]]).tolist()
    np.testing.assert_allclose(found, -np.mean(lost), rtol=1e-5)


def error(at):
    position = jnp.arange(at.x.shape[1])[None]
    wrong_SD = (at.beside(at.x, position) - at.out)[0]
    return jnp.where(at.real[:, None], jnp.square(wrong_SD), 0).sum()


def test_another_layer_is_held_against_its_own(model):
    """On what the model gives the layer, whatever other layers would have given."""
    first, _, last = model.layers
    found = statistics(model, ROWS, error, beside=[first, first, last]).layers
    assert found[0] < 1e-6 and found[2] < 1e-6
    x, _, _, after = everything(model)[1]
    wrong, start = 0.0, 0
    for n in map(len, ROWS):
        row = jnp.asarray(x[None, start : start + n], jnp.float32)
        other = first(row, jnp.arange(n)[None])[0]
        wrong += np.square(np.asarray(other) - after[start : start + n]).sum()
        start += n
    np.testing.assert_allclose(found[1], wrong, rtol=1e-4)


def test_only_the_layers_asked_for_are_looked_at(model):
    found = statistics(model, ROWS, values, layers=[1]).layers
    assert found[0] is None and found[2] is None and found[1] is not None


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_what_is_not_finite_names_its_layer(model, part):
    arrays = parameters_of(model)
    name = {"attention": "qkv", "mlp": "down"}[part]
    spoiled = arrays["layers"][1][part][name]
    arrays["layers"][1][part][name] = spoiled.at[(0,) * spoiled.ndim].set(jnp.inf)
    with pytest.raises(ValueError, match="Layer 1 gives values that are not finite"):
        statistics(assemble(CONFIG, arrays, jnp.float32), ROWS, values)


def test_refused(model):
    with pytest.raises(ValueError, match="no tokens to calibrate with"):
        statistics(model, [], values)
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        statistics(model, [[1, 99]], values)
    check_tokens(ROWS, 70, "it")
    with pytest.raises(ValueError, match="70 calibration tokens are too few for it"):
        check_tokens(ROWS, 71, "it")
