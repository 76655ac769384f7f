"""MatryoshkaKV's start: full rank is the model, bases are principal, budgets met."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.rope import rotate
from jaxkv.convert.low_rank import through, with_ranks
from jaxkv.convert.matryoshka import MatryoshkaKV
from jaxkv.generate import generate
from jaxkv.method import method
from jaxkv.models.folder import load, save
from jaxkv.models.sizes import LowRankSizes
from tests.convert.made import CONFIG, fresh, rows_of

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 30)))
ROWS = rows_of(CONFIG, (50, 61, 40))
QUICK = dict(search=False)


@pytest.fixture(scope="module")
def model():
    return fresh(CONFIG)


@pytest.fixture(scope="module")
def half(model):
    return MatryoshkaKV(keep_bytes=0.5, step=4)(model, ROWS)


@pytest.mark.parametrize(("search", "qk_norm"), [(True, False), (False, True)])
def test_full_rank_gives_the_original_logits(search, qk_norm):
    model = fresh(replace(CONFIG, qk_norm=qk_norm))
    converted = MatryoshkaKV(keep_bytes=1.0, search=search)(model, ROWS)
    assert all(s.entry == 2 * 16 for s in converted.config.attention)
    np.testing.assert_allclose(converted(IDS), model(IDS), rtol=1e-4, atol=1e-4)


def test_a_cache_of_full_rank_answers_alike(model):
    converted = MatryoshkaKV(keep_bytes=1.0, **QUICK)(model, ROWS)
    asked = [row.tolist() for row in IDS]
    found = generate(converted, asked, method=method("full"), max_new_tokens=4)
    assert found == generate(model, asked, method=method("full"), max_new_tokens=4)


def test_bases_are_the_principal_directions_of_what_the_layer_makes(model):
    """Against an SVD of the centred keys and values themselves."""
    converted = MatryoshkaKV(keep_bytes=1.0, **QUICK)(model, ROWS)
    keys, values = [], []
    for row in ROWS:
        position = jnp.arange(len(row))[None]
        x = model.embed(jnp.asarray([row]))
        x = model.layers[0](x, position)
        layer = model.layers[1]
        _, k, v = layer.attention.before_rope(layer.attention_norm(x))
        keys.append(rotate(k, position, layer.attention.inverse_frequencies)[0])
        values.append(v[0])
    ours = converted.layers[1].attention
    made = (keys, ours.key_basis[...]), (values, ours.value_basis[...])
    for rows, basis in made:
        x_SKH = np.concatenate(rows).astype(np.float64)
        centred = x_SKH - x_SKH.mean(axis=0)
        for h in range(CONFIG.kv_heads):
            _, s, vt = np.linalg.svd(centred[:, h], full_matrices=False)
            alike = np.abs(np.sum(vt.T * basis[h], axis=0))
            apart = np.minimum(s[:-1] / s[1:], np.append(s[:-2] / s[1:-1], 2)[::1])
            np.testing.assert_allclose(alike[:4][apart[:4] > 1.05], 1, atol=1e-2)
            kept = np.linalg.norm(centred[:, h] @ np.asarray(basis[h][:, :5]))
            np.testing.assert_allclose(kept, np.linalg.norm(s[:5]), rtol=1e-5)
    mean = np.concatenate(values).mean(axis=0)
    np.testing.assert_allclose(ours.value_mean[...], mean, atol=1e-5)


def test_a_searched_budget_is_met_and_one_width_a_layer(model, half):
    sizes = half.config.attention
    assert sum(s.entry for s in sizes) == 16 * CONFIG.layers  # half of 2 H each
    for s in sizes:
        assert {k + v for k, v in s.by_row} == {s.entry}
        assert min(s.key_ranks + s.value_ranks) >= 4  # a quarter of a head
    assert len({s.by_row for s in sizes}) > 1 or len(set(sizes[0].by_row)) > 1
    odd = MatryoshkaKV(keep_bytes=0.71, step=5)(model, ROWS)
    assert sum(s.entry for s in odd.config.attention) == 22 * CONFIG.layers
    few = MatryoshkaKV(keep_bytes=0.2, step=8)(model, ROWS)  # less than two quarters
    assert all(s.by_row == ((3, 3),) * 2 for s in few.config.attention)


def test_a_search_hurts_less_than_equal_ranks(model, half):
    """On what it is measured by, the last hidden states of the text."""
    equal = MatryoshkaKV(keep_bytes=0.5, **QUICK)(model, ROWS)
    assert equal.config.sizes(0) == LowRankSizes((8, 8), (8, 8))
    ids = jnp.asarray([ROWS[0]])
    right = model.hidden(ids)
    found, other = (jnp.linalg.norm(m.hidden(ids) - right) for m in (half, equal))
    assert found < other


def test_more_bytes_are_nearer_and_a_cut_needs_no_new_bases(model):
    right, errors = model(IDS), []
    full = MatryoshkaKV(keep_bytes=1.0, **QUICK)(model, ROWS)
    for keep in (0.25, 0.5, 0.75, 1.0):
        made = MatryoshkaKV(keep_bytes=keep, **QUICK)(model, ROWS)
        sizes = dict(enumerate(made.config.attention))
        np.testing.assert_array_equal(with_ranks(full, sizes)(IDS), made(IDS))
        errors.append(float(jnp.abs(made(IDS) - right).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4


def test_ranks_that_are_tried_are_those_of_a_cut_layer(half):
    """One program of full rank, whose entries are cut, and the layer itself."""
    full = LowRankSizes((16, 16), (16, 16))
    wide = with_ranks(half, dict.fromkeys(range(CONFIG.layers), full))
    x, position = half.embed(IDS), jnp.broadcast_to(jnp.arange(30), IDS.shape)
    for i, layer in enumerate(half.layers):
        keys, values = jnp.asarray(layer.attention.sizes.by_row, jnp.int32).T
        found = through(wide.layers[i], x, keys, values)
        np.testing.assert_allclose(found, layer(x, position), rtol=1e-4, atol=1e-5)
        x = layer(x, position)


def test_some_layers_and_a_folder(model, tmp_path):
    converted = MatryoshkaKV(keep_bytes=0.4, layers=(2, 0), probes=1)(model, ROWS)
    kinds = [s is None for s in converted.config.attention]
    assert kinds == [False, True, False] and not model.config.attention
    save(converted, None, tmp_path / "out")
    again, _ = load(tmp_path / "out")
    assert again.config.attention == converted.config.attention
    np.testing.assert_array_equal(again(IDS), converted(IDS))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(keep_bytes=0.0), "is no share"),
        (dict(keep_bytes=1.2), "is no share"),
        (
            dict(keep_bytes=0.05),
            r"leaves 1 of a head's 32 numbers.*give 0.0625 at least",
        ),
        (dict(key_share=1.0, search=False), "key_share=1.0"),
        (dict(step=0), "step=0"),
        (dict(probes=0), "probes=0"),
        (dict(least=1.5), "least=1.5 is no share of a head; give 0 to 1"),
        (dict(layers=(3,)), "no layer 3"),
    ],
)
def test_what_cannot_be_asked_for(asked, says, model):
    with pytest.raises(ValueError, match=says) as error:
        MatryoshkaKV(**asked)(model, ROWS)
    assert "\n" not in str(error.value)


def test_calibration_that_is_too_short_or_not_finite(model):
    few = rows_of(CONFIG, (9, 7))
    with pytest.raises(ValueError, match="16 calibration tokens.*give 17 at least"):
        MatryoshkaKV()(model, few)
    spoiled = fresh(CONFIG)
    spoiled.table[...] = spoiled.table[...].at[3].set(jnp.nan)
    rows = [*ROWS, [3, 4]]
    with pytest.raises(ValueError, match="Layer 0 gives values that are not finite"):
        MatryoshkaKV(**QUICK)(spoiled, rows)
    spoiled = fresh(CONFIG)
    qkv = spoiled.layers[1].attention.qkv
    qkv[...] = qkv[...].at[0, 0, 0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="Weights of layer 1 are not finite"):
        MatryoshkaKV(**QUICK)(spoiled, ROWS)
