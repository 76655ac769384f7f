"""X-EcoMLA: its factors are the matrices, its ranks hold the energy, its model runs."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.rope import rotate
from jaxkv.cli.main import main
from jaxkv.convert.x_ecomla import XEcoMLA, factors, head_parts, joint_factors
from jaxkv.models.folder import load, save
from jaxkv.models.frequencies import RopeScaling, inverse_frequencies
from jaxkv.models.presets import random_decoder
from tests.convert.made import CONFIG

MOST = 2 * 2 * 16  # numbers of all keys and values, but the width is smaller
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 30)))


@pytest.fixture(scope="module")
def model():
    return random_decoder(CONFIG, 0, jnp.float32)


def matrices(model, layer=0):
    """W_q [D, N, H], W_k and W_v [D, K, H]."""
    qkv = np.asarray(model.layers[layer].attention.qkv[...], np.float64)
    return qkv[:, :, :3].reshape(48, 6, 16), qkv[:, :, 3], qkv[:, :, 4]


def test_exact_factors_are_the_matrices(model):
    query, key, value = matrices(model)
    joint = joint_factors(key, value)
    both = np.einsum("DC,CKH->DKH", joint.down, joint.up)
    np.testing.assert_allclose(both[..., :16], key, atol=1e-12)
    np.testing.assert_allclose(both[..., 16:], value, atol=1e-12)
    found = factors(query)
    again = np.einsum("DC,CNH->DNH", found.down, found.up)
    np.testing.assert_allclose(again, query, atol=1e-12)


@pytest.mark.parametrize("rotated", ["matching", "last"])
def test_a_converted_layer_of_full_rank_holds_the_matrices(model, rotated):
    """All but the rotated keys, which are the mean of the heads'."""
    full = XEcoMLA(rank=48, rope_dim=8, query_rank=48, norm=False, rotated=rotated)
    converted = full(model)
    still, turning = head_parts(16, 8, rotated)
    for i in range(CONFIG.layers):
        query, key, value = matrices(model, i)
        ours = converted.layers[i].attention
        assert ours.sizes == converted.config.sizes(i)
        up = np.einsum("DR,RNA->DNA", ours.down[...][:, :48], ours.up[...])
        by_head = np.repeat(key, 3, axis=1), np.repeat(value, 3, axis=1)
        np.testing.assert_allclose(up[..., :8], by_head[0][..., still], atol=1e-5)
        np.testing.assert_allclose(up[..., 8:], by_head[1], atol=1e-5)
        mean = key.mean(axis=1)[:, turning]
        np.testing.assert_allclose(ours.down[...][:, 48:], mean, atol=1e-6)
        q = np.einsum("DC,CNQ->DNQ", ours.query_down[...], ours.query_up[...])
        parts = query[..., np.concatenate([still, turning])]
        np.testing.assert_allclose(q, parts, atol=1e-5)
        np.testing.assert_array_equal(
            ours.heads_out[...].reshape(6 * 16, -1),
            model.layers[i].attention.out[...].reshape(6 * 16, -1),
        )


@pytest.mark.parametrize("scaling", [None, RopeScaling(8.0, 1.0, 4.0, 64)])
def test_matching_pairs_turn_as_before(scaling):
    """So a layer whose heads share their rotated keys loses nothing of them."""
    _, turning = head_parts(16, 8, "matching")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 9, 1, 16)), jnp.float32)
    position = jnp.arange(9)[None] * 7
    before = rotate(x, position, inverse_frequencies(16, 1e4, scaling))
    after = rotate(x[..., turning], position, inverse_frequencies(8, 1e4, scaling))
    np.testing.assert_allclose(after, before[..., turning], rtol=1e-5, atol=1e-5)


def test_ranks_hold_the_energy(model):
    ranks = []
    for energy in (0.3, 0.6, 0.9, 1.0):
        config = XEcoMLA(energy=energy)(model).config
        for i in range(CONFIG.layers):
            singular = joint_factors(*matrices(model, i)[1:]).singular
            held = np.cumsum(np.square(singular)) / np.square(singular).sum()
            rank = config.sizes(i).rank
            assert rank % 8 == 0 and held[rank - 1] >= energy - 1e-9
            assert rank == 8 or held[rank - 9] < energy  # eight fewer would not do
        ranks.append(config.sizes(0).rank)
    assert ranks == sorted(set(ranks)) and ranks[-1] == min(48, MOST)


def test_the_same_rank_is_the_largest_that_was_found():
    """Of a model whose first layer has matrices of rank 2."""
    uneven = random_decoder(CONFIG, 0, jnp.float32)
    qkv = uneven.layers[0].attention.qkv
    qkv[...] = jnp.einsum("DR,RKGH->DKGH", qkv[:, 0, 0, :2], qkv[:2])
    found = XEcoMLA(energy=0.9, query_energy=0.9, rope_dim=4)
    own = [found(uneven).config.sizes(i) for i in range(CONFIG.layers)]
    assert (own[0].rank, own[0].query_rank) == (8, 8)
    one = replace(found, same_rank=True)(uneven).config.attention
    assert {s.rank for s in one} == {max(s.rank for s in own)} != {8}
    assert {s.query_rank for s in one} == {max(s.query_rank for s in own)} != {8}
    given = XEcoMLA(rank=9, same_rank=True, layers=(1,))(uneven).config
    assert given.sizes(1).rank == 9 and given.sizes(0) is None


def test_norms_start_near_nothing(model):
    """Their scale is what latents of white inputs divide by, in the mean."""
    plain = XEcoMLA(rank=24, norm=False)(model)
    normed = XEcoMLA(rank=24, norm=True)(model)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 400, 48)), jnp.float32)
    position = jnp.arange(400)[None]
    for left, right in zip(plain.layers, normed.layers, strict=True):
        h = left.attention_norm(x)
        _, without, _ = left.attention.entries(h, position)
        _, within, _ = right.attention.entries(h, position)
        ratio = jnp.linalg.norm(within[..., :24]) / jnp.linalg.norm(without[..., :24])
        assert abs(float(ratio) - 1) < 0.1


def test_other_layers_stay_and_the_folder_is_the_model(model, tmp_path):
    converted = XEcoMLA(rank=32, layers=(2, 0))(model)
    kinds = [s is None for s in converted.config.attention]
    assert kinds == [False, True, False] and converted.config.sizes(0).rank == 32
    assert not model.config.attention
    save(converted, None, tmp_path / "out")
    again, _ = load(tmp_path / "out")
    np.testing.assert_array_equal(again(IDS), converted(IDS))
    more = XEcoMLA(rank=32, layers=(1,))(converted)
    assert None not in more.config.attention


def test_more_rank_is_nearer(model):
    right = model(IDS)
    errors = [
        float(jnp.abs(XEcoMLA(rank=rank, norm=False)(model)(IDS) - right).mean())
        for rank in (8, 24, 48)
    ]
    assert errors == sorted(errors, reverse=True)


REFUSED = {
    "rank": (dict(rank=49), "rank of layer 0 is to be 49, .* 48 at most"),
    "query rank": (dict(query_rank=49), "query_rank of layer 0 is to be 49"),
    "no rank": (dict(rank=0), "rank of layer 0 is to be 0"),
    "odd": (dict(rope_dim=7), "rope_dim=7 is not an even number"),
    "too large": (dict(rope_dim=16), "below the model's head_dim of 16"),
    "no divisor": (dict(rope_dim=6), "rope_dim=6 does not divide"),
    "layer": (dict(layers=(3,)), "no layer 3 in a model of 3"),
    "energy": (dict(energy=1.5), "energy of 1.5"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        XEcoMLA(**options)(model)


def test_refused_models(model):
    with pytest.raises(ValueError, match="Layer 1 has no grouped queries"):
        XEcoMLA()(XEcoMLA(layers=(1,))(model))
    with pytest.raises(ValueError, match="norms every query and key head"):
        qwen = replace(CONFIG, architecture="Qwen3ForCausalLM", qk_norm=True)
        XEcoMLA()(random_decoder(qwen, 0, jnp.float32))
    spoiled = random_decoder(CONFIG, 0, jnp.float32)
    qkv = spoiled.layers[1].attention.qkv
    qkv[...] = qkv[...].at[0, 0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="Weights of layer 1 are not finite"):
        XEcoMLA()(spoiled)


def test_command(model, tmp_path, capsys):
    save(model, None, tmp_path / "model")
    asked = ["convert", "--model", str(tmp_path / "model"), "--to", "mla"]
    asked += ["--out", str(tmp_path / "out"), "--rope-dim", "8"]
    assert main([*asked, "--rank", "99"]) == 2
    said = capsys.readouterr().err
    assert "48 at most" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main([*asked, "--rank", "24"]) == 0
    # 2 K H = 64 numbers a layer, 24 + 8 after
    assert "384 bytes in bfloat16, now 192 (2.0 times" in capsys.readouterr().out
    again, _ = load(tmp_path / "out")
    assert again.config.sizes(2).rank == 24
    assert main([*asked, "--rank", "24"]) == 2
    assert "already exists" in capsys.readouterr().err
