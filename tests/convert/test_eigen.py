"""Eigen Attention: full rank is the model, thresholds keep to the error budget."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.convert.eigen import EigenAttention
from jaxkv.convert.low_rank import with_ranks
from jaxkv.generate import generate
from jaxkv.method import method
from jaxkv.models.folder import load, save
from jaxkv.models.sizes import LowRankSizes
from tests.convert.made import CONFIG, fresh, rows_of

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 30)))
ROWS = rows_of(CONFIG, (50, 61, 40))


@pytest.fixture(scope="module")
def model():
    return fresh(CONFIG)


def features(model, index, rows=ROWS):
    """What enters a layer of each row, and its keys and values, not rotated."""
    made = []
    for row in rows:
        x = model.embed(jnp.asarray([row]))
        for layer in list(model.layers)[:index]:
            x = layer(x, jnp.arange(len(row))[None])
        layer = model.layers[index]
        _, k, v = layer.attention.before_rope(layer.attention_norm(x))
        made.append((x, np.asarray(k[0], float), np.asarray(v[0], float)))
    return made


def count(features_SH, threshold):
    """The paper's code: plain singular values, whose running sum is below."""
    s = np.linalg.svd(features_SH, compute_uv=False)
    return int((np.cumsum(s) / s.sum() < threshold).sum())


@pytest.mark.parametrize("qk_norm", [True, False])
def test_full_rank_gives_the_original_logits(qk_norm):
    model = fresh(replace(CONFIG, qk_norm=qk_norm))
    converted = EigenAttention(key_rank=16, value_rank=16)(model, ROWS)
    np.testing.assert_allclose(converted(IDS), model(IDS), rtol=1e-4, atol=1e-4)
    assert not converted.config.sizes(0).after_rope


def test_a_cache_of_full_rank_answers_alike(model):
    converted = EigenAttention(key_rank=16, value_rank=16)(model, ROWS)
    asked = [row.tolist() for row in IDS]
    found = generate(converted, asked, method=method("full"), max_new_tokens=4)
    assert found == generate(model, asked, method=method("full"), max_new_tokens=4)


def test_bases_are_the_features_singular_vectors(model):
    converted = EigenAttention(key_rank=9, value_rank=7)(model, ROWS)
    made = features(model, 1)
    ours = converted.layers[1].attention
    k_SH = np.concatenate([k.reshape(-1, 16) for _, k, _ in made])
    s = np.linalg.svd(k_SH, compute_uv=False)
    kept = np.linalg.norm(k_SH @ np.asarray(ours.key_basis[...][0][:, :9]))
    np.testing.assert_allclose(kept, np.linalg.norm(s[:9]), rtol=1e-5)
    for h in range(CONFIG.kv_heads):
        v_SH = np.concatenate([v[:, h] for _, _, v in made])
        s = np.linalg.svd(v_SH, compute_uv=False)
        kept = np.linalg.norm(v_SH @ np.asarray(ours.value_basis[...][h][:, :7]))
        np.testing.assert_allclose(kept, np.linalg.norm(s[:7]), rtol=1e-5)


def test_thresholds_go_as_low_as_the_error_allows(model):
    """Step by step with models of those ranks, not with the search's own program."""
    way = EigenAttention(error=0.4, step=0.1, least=0.2)
    converted = way(model, ROWS)
    full = EigenAttention(key_rank=16, value_rank=16)(model, ROWS)
    for i, layer in enumerate(model.layers):
        made = features(model, i)
        k_SH = np.concatenate([k.reshape(-1, 16) for _, k, _ in made])
        by_head = [
            np.concatenate([v[:, h] for _, _, v in made])
            for h in range(CONFIG.kv_heads)
        ]
        taken, threshold = (16, 16), 1.0
        while True:
            threshold -= 0.1
            ranks = count(k_SH, threshold), max(count(v, threshold) for v in by_head)
            if min(ranks) < 0.2 * 16 or error_of(full, layer, i, ranks, made) > 0.4:
                break
            taken = ranks
        sizes = converted.config.sizes(i)
        assert (sizes.key_ranks[0], sizes.value_ranks[0]) == taken
        assert taken < (16, 16)


def error_of(full, layer, i, ranks, made):
    """What leaves a layer of these ranks, against the original one."""
    sizes = LowRankSizes(*((rank,) * CONFIG.kv_heads for rank in ranks), False)
    cut = with_ranks(full, {i: sizes}).layers[i]
    off = of = 0.0
    for x, *_ in made:
        position = jnp.arange(x.shape[1])[None]
        right = layer(x, position)
        off += float(jnp.square(cut(x, position) - right).sum())
        of += float(jnp.square(right).sum())
    return np.sqrt(off / of)


def test_the_least_rank_and_the_error_both_end_the_search(model):
    loose = EigenAttention(error=100.0)(model, ROWS).config.attention
    assert all(min(s.key_ranks + s.value_ranks) >= 0.45 * 16 for s in loose)
    strict = EigenAttention(error=1e-6)(model, ROWS).config.attention
    assert {s.by_row for s in strict} == {((16, 16),) * 2}
    assert all(s.entry < 32 for s in loose)


@pytest.mark.parametrize("keep", [0.3, 0.6, 1.0])
def test_a_share_of_bytes_is_not_passed(keep, model):
    sizes = EigenAttention(keep_bytes=keep)(model, ROWS).config.attention
    kept = sum(s.entry for s in sizes) / (32 * CONFIG.layers)
    assert keep - 0.05 < kept <= keep


def test_averaged_rows_are_one(model):
    """Token by token, over rows of other lengths as far as they go."""
    rows = rows_of(CONFIG, (50, 40, 60, 33))
    converted = EigenAttention(key_rank=5, value_rank=5, average=2)(model, rows)
    made = [k for _, k, _ in features(model, 0, rows)]
    averaged = []
    for one, two in (made[:2], made[2:]):
        n = min(len(one), len(two))
        both = max(one, two, key=len).copy()
        both[:n] = (one[:n] + two[:n]) / 2
        averaged.append(both.reshape(-1, 16))
    k_SH = np.concatenate(averaged)
    s = np.linalg.svd(k_SH, compute_uv=False)
    basis = np.asarray(converted.layers[0].attention.key_basis[...][0][:, :5])
    np.testing.assert_allclose(
        np.linalg.norm(k_SH @ basis), np.linalg.norm(s[:5]), rtol=1e-5
    )


def test_some_layers_and_a_folder(model, tmp_path):
    converted = EigenAttention(key_rank=8, value_rank=10, layers=(1,))(model, ROWS)
    same = LowRankSizes((8, 8), (10, 10), after_rope=False)
    assert converted.config.attention == (None, same, None)
    save(converted, None, tmp_path / "out")
    again, _ = load(tmp_path / "out")
    assert again.config.attention == converted.config.attention
    np.testing.assert_array_equal(again(IDS), converted(IDS))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(key_rank=17, value_rank=8), "is to be 17"),
        (dict(key_rank=8), "A key rank goes with a value rank"),
        (dict(key_rank=8, value_rank=8, keep_bytes=0.5), "with no share of bytes"),
        (dict(keep_bytes=1.5), "is no share"),
        (dict(error=0.0), "error=0.0"),
        (dict(average=0), "average=0"),
        (dict(layers=(7,)), "no layer 7"),
    ],
)
def test_what_cannot_be_asked_for(asked, says, model):
    with pytest.raises(ValueError, match=says) as error:
        EigenAttention(**asked)(model, ROWS)
    assert "\n" not in str(error.value)


def test_calibration_that_is_too_short_or_not_finite(model):
    with pytest.raises(ValueError, match="15 calibration tokens.*give 16 at least"):
        EigenAttention()(model, rows_of(CONFIG, (9, 6)))
    with pytest.raises(ValueError, match="3 rows are averaged; give 48 at least"):
        EigenAttention(average=3)(model, rows_of(CONFIG, (9, 20)))
    spoiled = fresh(CONFIG)
    spoiled.table[...] = spoiled.table[...].at[3].set(jnp.nan)
    with pytest.raises(ValueError, match="Layer 0 gives values that are not finite"):
        EigenAttention(key_rank=8, value_rank=8)(spoiled, [*ROWS, [3, 4]])
