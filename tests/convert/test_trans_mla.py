"""TransMLA: turning loses nothing, nor does full rank of what is trimmed."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.convert import trans_mla
from jaxkv.convert.base import with_attention
from jaxkv.convert.ro_rope import turn
from jaxkv.convert.statistics import statistics
from jaxkv.convert.trans_mla import TransMLA
from jaxkv.export.formats import export
from jaxkv.models.folder import load, save
from jaxkv.models.frequencies import RopeScaling, Yarn, inverse_frequencies
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LatentSizes
from tests.convert.made import CONFIG, fresh, parameters_of, rows_of

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 30)))
ROWS = [*rows_of(CONFIG, (90, 61, 75)), list(range(40))]  # every token is in it
WIDE = replace(CONFIG, width=96, layers=2)  # wider than all keys and values
SHAPES = {  # query heads, kv heads, head_dim, rope_dim, fold, query_rank
    "grouped": (6, 2, 16, 8, 2, None),
    "folded": (6, 2, 16, 8, 4, 96),
    "every head": (3, 3, 12, 6, 2, None),
    "odd sizes": (6, 2, 18, 6, 9, 96),
    "short": (4, 2, 16, 2, 8, None),
    "whole head": (4, 2, 16, 16, 1, 64),
}


def shaped(query_heads, kv_heads, head_dim, **others):
    sizes = dict(query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim)
    return replace(WIDE, **sizes, **others)


class Turned(GroupedQuery):
    """All kv heads' turned numbers as one key, every pair with its own frequency."""

    frequencies: tuple[float, ...]

    @property
    def inverse_frequencies(self):
        return np.array(self.frequencies, np.float32)


def as_one_head(model, turns, kept, frequencies):
    """The model with turned keys of K H numbers, the first `kept` rotated as a head.

    frequencies: of the kept pairs, then of the others.
    """
    config = model.config
    K, G, H, D = config.kv_heads, config.group, config.head_dim, config.width
    other = fresh(replace(config, kv_heads=1, head_dim=K * H))
    at = np.arange(K * H)
    halves = at[:kept].reshape(2, -1), at[kept:].reshape(2, -1)
    order = np.concatenate(halves, axis=1).reshape(-1)
    for layer, left, turned in zip(model.layers, other.layers, turns, strict=True):
        turned = turned[..., order]
        qkv = np.asarray(layer.attention.qkv[...], float)
        q = np.einsum("DKGH,KHW->DKGW", qkv[:, :, :G], turned) * np.sqrt(K)
        k = np.einsum("DKH,KHW->DW", qkv[:, :, G], turned)
        v = qkv[:, :, G + 1].reshape(D, -1)
        out = np.zeros((K, G, K, H, D))
        for head in range(K):
            out[head, :, head] = layer.attention.out[...][head]
        one = left.attention
        one.__class__, one.frequencies = Turned, tuple(map(float, frequencies))
        joined = [q.reshape(D, K * G, K * H), k[:, None], v[:, None]]
        qkv = np.concatenate(joined, axis=1)[:, None]
        one.qkv[...] = jnp.asarray(qkv, "float32")
        one.out[...] = jnp.asarray(out.reshape(1, K * G, K * H, D), "float32")
        layer.attention = one
    return model


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_the_turn_before_trimming_gives_the_original_logits(kv_heads):
    """Fold 1, nothing trimmed: one key of K H numbers, all of them rotated."""
    model = fresh(replace(CONFIG, kv_heads=kv_heads, layers=2))
    right = model(IDS)
    sums = statistics(model, ROWS, trans_mla._key_pairs).layers
    every = inverse_frequencies(16, CONFIG.rope_theta)
    frequencies = [*every, *np.repeat(every, kv_heads - 1)]
    turns = [turn(moments, 1, 1) for moments in sums]
    found = as_one_head(model, turns, 16, frequencies)
    np.testing.assert_allclose(found(IDS), right, atol=1e-4)
    assert float(jnp.abs(right).max()) > 0.5


def trimmed(model, way, rows=ROWS):
    """The model whose keys are trimmed and nothing else."""
    config, made = model.config, []
    sizes = way._sizes(config, rows)
    keys = statistics(model, rows, trans_mla._key_pairs).layers
    for i, layer in enumerate(model.layers):
        turned = turn(keys[i], way.fold, config.head_dim // sizes.rope_dim)
        whole = trans_mla._trimmed(config, layer, i, turned, sizes)
        made.append((i, whole.sizes, whole.parameters))
    return with_attention(model, made)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_full_rank_is_the_trimmed_model(shape):
    N, K, H, rope_dim, fold, query_rank = shape
    config = shaped(N, K, H, layers=1)
    model = fresh(config)
    most = 2 * K * H - rope_dim
    full = TransMLA(most, rope_dim, fold, query_rank, balance=0.5, norm=False)
    expected = trimmed(model, full)(IDS)
    converted = full(model, ROWS)
    assert converted.config.sizes(0).rank == most
    np.testing.assert_allclose(converted(IDS), expected, atol=1e-4)


def test_trimmed_keys_are_turned_and_rotated_in_part():
    """By every second frequency where folded so, and not at all elsewhere."""
    model = fresh(replace(CONFIG, layers=2))
    found = trimmed(model, TransMLA(8, rope_dim=8, fold=4))(IDS)
    sums = statistics(model, ROWS, trans_mla._key_pairs).layers
    turns = [turn(moments, 4, 2) for moments in sums]
    kept = inverse_frequencies(16, CONFIG.rope_theta)[::2]
    expected = as_one_head(model, turns, 8, [*kept, *np.zeros(12)])(IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_head_that_stays_whole_is_the_model():
    """Of one kv head nothing is trimmed where the rotated key is as long as it."""
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    model = fresh(replace(CONFIG, kv_heads=1, rope_scaling=scaling))
    converted = TransMLA(16, 16, 1, norm=False)(model, ROWS)
    np.testing.assert_allclose(converted(IDS), model(IDS), atol=1e-4)


@pytest.mark.parametrize("scaling", [None, RopeScaling(8.0, 1.0, 4.0, 64)])
def test_the_rotated_key_has_every_so_many_frequencies(scaling):
    config = replace(CONFIG, layers=1, rope_scaling=scaling)
    sizes = TransMLA(8, rope_dim=4)._sizes(config, ROWS)
    ours = fresh(replace(config, attention=(sizes,))).layers[0].attention
    of_head = config.inverse_frequencies()
    np.testing.assert_allclose(ours.inverse_frequencies, of_head[::4], rtol=1e-6)


def test_heads_that_are_alike_lose_nothing():
    """Of two equal kv heads the turn leaves one that is nought."""
    model = fresh(replace(CONFIG, layers=1))
    qkv = model.layers[0].attention.qkv
    qkv[...] = qkv[...].at[:, 1, 3].set(qkv[...][:, 0, 3])
    converted = TransMLA(32, rope_dim=16, fold=1, norm=False)(model, ROWS)
    np.testing.assert_allclose(converted(IDS), model(IDS), atol=1e-4)


def test_more_rank_is_nearer_and_defaults_fit():
    model = fresh(CONFIG)
    right = model(IDS)
    errors = []
    for rank in (4, 48):
        found = TransMLA(rank, 16, 1, norm=False)(model, ROWS)
        errors.append(float(jnp.abs(found(IDS) - right).mean()))
    assert errors[0] > errors[1]
    sizes = TransMLA()(model, ROWS).config.sizes(1)
    assert sizes == LatentSizes(16, rope_dim=8, nope_dim=16, value_dim=16)


def test_the_fold_is_the_one_of_least_loss(monkeypatch):
    """Doubled as long as the loss falls."""
    model, tried = fresh(CONFIG), []
    plain = trans_mla.turn

    def turn_and_tell(moments, fold, collapse):
        tried.append(fold)
        return plain(moments, fold, collapse)

    monkeypatch.setattr(trans_mla, "turn", turn_and_tell)
    found = TransMLA(16, 8, norm=False)(model, ROWS)
    *order, last = tried[:: CONFIG.layers]
    assert order == [2, 4, 8][: len(order)]
    losses = {}
    for fold in order:
        given = TransMLA(16, 8, fold, norm=False)
        losses[fold] = statistics(trimmed(model, given), ROWS, lambda at: None).loss
    best = min(losses, key=losses.get)
    assert last == best
    if order[-1] != 8:
        assert losses[order[-1]] >= losses[order[-2]] and best == order[-2]
    np.testing.assert_array_equal(
        found(IDS), TransMLA(16, 8, best, norm=False)(model, ROWS)(IDS)
    )


def test_keys_and_values_are_balanced():
    """Values a thousand times smaller are kept as well as before."""
    model = fresh(replace(CONFIG, layers=1))
    way = TransMLA(24, 8, 2, norm=False)
    before = way(model, ROWS)
    qkv = model.layers[0].attention.qkv
    qkv[...] = qkv[...].at[:, :, -1].multiply(1e-3)
    out = model.layers[0].attention.out
    out[...] = out[...] * 1e3
    np.testing.assert_allclose(way(model, ROWS)(IDS), before(IDS), atol=2e-3)
    keys_first = replace(way, balance=1e3)(model, ROWS)
    assert float(jnp.abs(keys_first(IDS) - before(IDS)).max()) > 0.05


def test_norms_start_near_nothing():
    model = fresh(CONFIG)
    way = TransMLA(24, 8, 2, query_rank=40)
    plain, normed = replace(way, norm=False)(model, ROWS), way(model, ROWS)
    position = jnp.arange(90)[None]
    h = model.layers[0].attention_norm(model.embed(jnp.asarray([ROWS[0]])))
    left, right = plain.layers[0].attention, normed.layers[0].attention
    for without, within in zip(
        left.entries(h, position)[:2], right.entries(h, position)[:2], strict=True
    ):
        ratio = jnp.linalg.norm(within) / jnp.linalg.norm(without)
        assert abs(float(ratio) - 1) < 0.1
    root = jnp.sqrt(jnp.square(left.entries(h, position)[1][..., :24]).mean(axis=-1))
    scale = right.norm.scale[...]
    assert float(root.min()) < float(scale[0]) < float(root.max())
    assert float(jnp.ptp(scale)) == 0


def test_other_layers_stay_and_the_folder_is_the_model(tmp_path):
    model = fresh(CONFIG)
    converted = TransMLA(12, layers=(2, 0))(model, ROWS)
    assert [s is None for s in converted.config.attention] == [False, True, False]
    assert not model.config.attention
    save(converted, None, tmp_path / "out")
    again, _ = load(tmp_path / "out")
    np.testing.assert_array_equal(again(IDS), converted(IDS))
    whole = TransMLA(12)(model, ROWS)
    export(whole, None, tmp_path / "deepseek", format="deepseek")
    again, _ = load(tmp_path / "deepseek")
    np.testing.assert_array_equal(again(IDS), whole(IDS))


REFUSED = {
    "rank": (dict(rank=49), "rank of each layer is to be 49, .* 48 at most"),
    "no rank": (dict(rank=0), "rank of each layer is to be 0"),
    "query rank": (dict(query_rank=49), "query_rank of each layer is to be 49"),
    "odd": (dict(rope_dim=7), "rope_dim=7 is not an even divisor .* of 16"),
    "too large": (dict(rope_dim=32), "rope_dim=32 is not an even divisor"),
    "fold": (dict(rope_dim=8, fold=3), "fold=3 is not a multiple of 2, .* 2, 4, 8"),
    "fold too large": (dict(fold=16), "fold=16"),
    "layer": (dict(layers=(3,)), "no layer 3 in a model of 3"),
    "balance": (dict(balance=0.0), "balance=0.0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        TransMLA(**options)(fresh(CONFIG), ROWS)
    assert "\n" not in str(error.value)


def test_refused_models_and_text():
    model = fresh(CONFIG)
    with pytest.raises(ValueError, match="56 keys and values; give 56 at least"):
        TransMLA()(model, rows_of(CONFIG, (30, 25)))
    with pytest.raises(ValueError, match="70 calibration tokens .* give 96 at least"):
        TransMLA(query_rank=8)(model, rows_of(CONFIG, (70,)))
    with pytest.raises(ValueError, match="Layer 1 has no grouped queries"):
        TransMLA()(TransMLA(layers=(1,))(model, ROWS), ROWS)
    qwen = replace(CONFIG, architecture="Qwen3ForCausalLM", qk_norm=True)
    with pytest.raises(ValueError, match="norms every query and key head"):
        TransMLA()(random_decoder(qwen, 0, jnp.float32), ROWS)
    with pytest.raises(ValueError, match="stretched as YaRN"):
        TransMLA()(fresh(replace(CONFIG, rope_scaling=Yarn(4.0, 64))), ROWS)
    spoiled = fresh(CONFIG)
    down = spoiled.layers[1].mlp.down
    down[...] = down[...].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="Layer 1 gives values that are not finite"):
        TransMLA()(spoiled, ROWS)
    assert parameters_of(model)
