"""Low-rank attention: its formula, what is absorbed or made again, and its pages."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.attend.made_keys import CHUNK
from jaxkv.attention.eigen import Eigen
from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.attention.matryoshka import Matryoshka
from jaxkv.cache.pages import PoolShape, append, pack
from jaxkv.generate import generate
from jaxkv.kept import Kept
from jaxkv.method import method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LowRankSizes
from jaxkv.train.forward import Student, forward

B, S, D, K, G, H = 2, 150, 40, 2, 3, 16
CONFIG = DecoderConfig(
    width=D, query_heads=K * G, kv_heads=K, head_dim=H, qk_norm=True, initial_scale=0.3
)
FULL = {
    "matryoshka": LowRankSizes((H, H), (H, H)),
    "eigen": LowRankSizes((H, H), (H, H), after_rope=False),
}
SIZES = FULL | {
    "matryoshka cut": LowRankSizes((10, 10), (6, 6)),
    "heads differ": LowRankSizes((12, 5), (4, 11)),
    "eigen cut": LowRankSizes((10, 10), (7, 7), after_rope=False),
}


def make(sizes):
    """Attention with random bases and means, hidden states and positions."""
    kind = Matryoshka if sizes.after_rope else Eigen
    module = kind(CONFIG, sizes, rngs=nnx.Rngs(0), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    for basis in (module.key_basis, module.value_basis):
        drawn = np.linalg.qr(rng.normal(size=basis.shape))[0]
        basis[...] = jnp.asarray(drawn, jnp.float32)
    mean = rng.normal(size=module.value_mean.shape)
    module.value_mean[...] = jnp.asarray(mean, jnp.float32)
    x = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    return module, x, jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))


@pytest.mark.parametrize("sizes", FULL.values(), ids=FULL)
def test_half_precision_is_near_whole(sizes):
    """XLA's CPU backend lacks some products of bfloat16; a prompt and a cache run."""
    config = replace(CONFIG, attention=(sizes,) * CONFIG.layers)
    exact = random_decoder(config, 0, jnp.float32)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
    asked = [[1, 5, 3, 2, 8, 9], [4, 4, 7]]
    right = exact(jnp.asarray(asked[:1]))
    off = jnp.abs(half(jnp.asarray(asked[:1])).astype(jnp.float32) - right)
    assert off.max() < 0.05 * jnp.abs(right).max()
    found = generate(half, asked, method=method("full"), max_new_tokens=3)
    assert [len(row) for row in found] == [3, 3]


def by_the_formula(module, x):
    """out [S, D] and lse [S, N] of one row, head by head in fp64, as papers have it."""
    sizes, grouped = module.sizes, module.grouped
    q, k, v = (np.asarray(y[0], np.float64) for y in grouped.before_rope(x[None]))
    key_basis = np.asarray(module.key_basis[...], np.float64)
    value_basis = np.asarray(module.value_basis[...], np.float64)
    mean = np.asarray(module.value_mean[...], np.float64)
    w_o = np.asarray(grouped.out[...], np.float64)

    def turned(y):
        angle = np.arange(S)[:, None] * grouped.inverse_frequencies.astype(np.float64)
        z = (y[:, : H // 2] + 1j * y[:, H // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=-1)

    out, lse = 0.0, []
    for n in range(K * G):
        h = n // G
        u = key_basis[h if sizes.after_rope else 0][:, : sizes.key_ranks[h]]
        keys = (
            turned(k[:, h]) @ u @ u.T if sizes.after_rope else turned(k[:, h] @ u @ u.T)
        )
        u = value_basis[h][:, : sizes.value_ranks[h]]
        values = (v[:, h] - mean[h]) @ u @ u.T + mean[h]
        z = turned(q[:, n]) @ keys.T / np.sqrt(H)
        z = np.where(np.tri(S, dtype=bool), z, -np.inf)
        total = np.log(np.exp(z).sum(axis=-1))
        out = out + np.exp(z - total[:, None]) @ values @ w_o[h, n % G]
        lse.append(total)
    return out, np.stack(lse, axis=-1)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_prompt_is_the_formula_and_a_cache_is_the_prompt(sizes):
    module, x, position = make(sizes)
    q, k, v = module.entries(x, position)
    assert v is None and k.shape == (B, S, K, sizes.entry)
    heads, lse = module.attend_prompt(q, k, v)
    out = module(x, position)
    for b in range(B):
        right, right_lse = by_the_formula(module, x[b])
        np.testing.assert_allclose(out[b], right, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(lse[b], right_lse, rtol=1e-4, atol=1e-4)
    pages = append(pages_of(k[:, :100]), k[:, 100:], None, position[:, 100:])
    read, lse_BJRTG, logits = module.attend_pages(
        q[:, 100:], pages, position[:, 100:], return_logits=True
    )
    np.testing.assert_allclose(read, heads[:, 100:], rtol=1e-4, atol=2e-5)
    by_token = lse_BJRTG[:, 0].transpose(0, 2, 1, 3).reshape(B, -1, K * G)
    np.testing.assert_allclose(by_token, lse[:, 100:], rtol=1e-5, atol=1e-5)
    for row in range(K):
        mine = (pages.owner == row)[..., None, None, None]
        paid = jnp.exp(logits - lse_BJRTG[:, :, row : row + 1, :, :, None])
        total = jnp.where(mine, paid, 0).sum(axis=(2, 5))
        np.testing.assert_allclose(total, 1.0, rtol=1e-4)


@pytest.mark.parametrize("sizes", FULL.values(), ids=FULL)
def test_full_rank_is_grouped_queries(sizes):
    module, x, position = make(sizes)
    grouped = module.grouped
    assert isinstance(grouped, GroupedQuery)
    right = grouped(x, position)
    np.testing.assert_allclose(module(x, position), right, rtol=1e-4, atol=1e-4)
    segment = (position >= 70).astype(jnp.int32)
    again = jnp.where(position >= 70, position - 70, position)
    found, right = (m(x, again, segment) for m in (module, grouped))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_entries_in_any_order_and_of_each_head(sizes):
    module, x, position = make(sizes)
    q, k, v = module.entries(x, position)
    heads, lse = module.attend_prompt(q, k, v)
    order = np.stack([np.random.default_rng(n).permutation(S) for n in range(K)])
    own = jnp.stack([k[:, order[n], n] for n in range(K)], axis=2)
    at = jnp.broadcast_to(jnp.asarray(order, jnp.int32), (B, K, S))
    found, found_lse = module.attend_entries(q[:, 60:], own, v, position[:, 60:], at)
    np.testing.assert_allclose(found, heads[:, 60:], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(found_lse, lse[:, 60:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["matryoshka", "matryoshka cut", "heads differ"])
def test_asked_and_of_values_are_what_scores_look_at(name):
    """The layer's output from absorbed queries, entries and `of_values` alone."""
    module, x, position = make(SIZES[name])
    q, k, _ = module.entries(x, position)
    asked = module.asked(q).reshape(B, S, K, G, -1)
    z = jnp.einsum("BTKGW,BSKW->BKGTS", asked, k) * module.scale
    z = jnp.where(jnp.tri(S, dtype=bool)[None, None, None], z, -jnp.inf)
    mixed = jnp.einsum(
        "BKGTS,BSKE->BKGTE", jax.nn.softmax(z), k[..., : module.value_dim]
    )
    out = jnp.einsum("BKGTE,KGED->BTD", mixed, module.of_values())
    out = out + module.output(jnp.zeros((B, S, K * G, H)))  # of the mean, alone
    np.testing.assert_allclose(out, module(x, position), rtol=1e-4, atol=1e-4)


def test_a_part_of_an_entry_is_the_key_and_the_rest_the_value():
    module, x, position = make(SIZES["heads differ"])
    full, *_ = make(FULL["matryoshka"])
    _, k, v = full.grouped.entries(x, position)
    _, entry, _ = module.entries(x, position)
    part = module.key_part
    assert part.sum(axis=1).tolist() == [12, 5]
    for h, (r_k, r_v) in enumerate(module.sizes.by_row):
        key = k[:, :, h] @ module.key_basis[...][h][:, :r_k]
        value = v[:, :, h] @ module.value_basis[...][h][:, :r_v]
        np.testing.assert_allclose(entry[:, :, h, part[h]], key, atol=1e-5)
        np.testing.assert_allclose(entry[:, :, h, ~part[h]], value, atol=1e-5)


@pytest.mark.parametrize("name", ["heads differ", "eigen cut"])
def test_a_training_step_over_stacked_layers(name):
    """Its pass is the model's own, and bases and means have gradients."""
    sizes = SIZES[name]
    config = replace(CONFIG, layers=2, vocabulary=30, attention=(sizes,) * 2)
    graph, state = nnx.split(random_decoder(config, 0, jnp.float32))
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 30, (B, 20)))
    position = jnp.broadcast_to(jnp.arange(20), ids.shape)

    def hidden(state):
        student = Student(nnx.merge(graph, state))
        given = forward(student, ids, position, None, jnp.float32, "full")
        return jnp.square(given.hidden - 1).mean(), given.hidden

    (_, found), gradient = jax.value_and_grad(hidden, has_aux=True)(state)
    right = nnx.merge(graph, state).hidden(ids)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
    attention = nnx.to_pure_dict(gradient)["layers"][0]["attention"]
    for part in ("key_basis", "value_basis", "value_mean"):
        assert float(jnp.abs(attention[part]).max()) > 1e-6


def test_keys_of_more_pages_than_are_made_at_one_time():
    """Several chunks of which the last reaches back, and free pages at the end."""
    module, x, position = make(SIZES["eigen cut"])
    long = jnp.tile(x, (1, 15, 1))[:, : CHUNK * 32 + 40]
    at = jnp.broadcast_to(jnp.arange(long.shape[1], dtype=jnp.int32), long.shape[:2])
    q, k, v = module.entries(long, at)
    pages = pages_of(k, headroom=200)
    count = pages.owner.shape[-1]
    assert count > CHUNK and count % CHUNK and (np.asarray(pages.owner) < 0).any()
    heads, _ = module.attend_prompt(q, k, v)
    last = slice(-3, None)
    found, _, logits = module.attend_pages(
        q[:, last], pages, at[:, last], return_logits=True
    )
    np.testing.assert_allclose(found, heads[:, last], rtol=1e-4, atol=2e-5)
    live = np.isfinite(np.asarray(logits))[:, 0, :, -1, 0]
    assert live.sum() == B * K * long.shape[1]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bytes_are_the_ranks(sizes):
    """2 (r_k + r_v) a token and kv head in bf16, whole pages, and what a slot is."""
    entry = jnp.zeros((B, S, K, sizes.entry), jnp.bfloat16)
    pages = pages_of(entry)
    used = -(-S // pages.page) * B * K  # whole pages
    per_slot = 2 * sizes.entry + 4  # and its position
    dealt = pages.owner.size * 4 + pages.table.size * 4 + pages.length.size * (4 + 1)
    free = pages.owner.size - used
    assert pages.cache_bytes == used * pages.page * per_slot + dealt - 4 * free + 4 * B


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        (((17, 16), (15, 16)), "to be 17, and a head of the model has 16"),
        (((8,), (8,)), "ranks of 1 heads and the model has 2 kv heads"),
        (((8, 8), (8,)), "key ranks of 2 kv heads and value ranks of 1"),
        (((8, 0), (8, 16)), "below 1"),
        (((8, 8), (8, 7)), "equally many"),
        (((8, 6), (6, 8), False), "share a basis"),
    ],
)
def test_ranks_that_cannot_be(ranks, says):
    with pytest.raises(ValueError, match=says) as error:
        DecoderConfig(
            layers=1, query_heads=6, kv_heads=2, head_dim=16,
            attention=(LowRankSizes(*ranks),),
        )  # fmt: skip
    assert "\n" not in str(error.value)


def pages_of(entry, headroom=64):
    """Every entry of each row in pages, with room for more."""
    B, T, K, _ = entry.shape
    shape = PoolShape(groups=1, rows=K, total=T * K, most=T, headroom=headroom, page=64)
    kept = Kept(
        entry,
        None,
        jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
        jnp.broadcast_to(jnp.arange(T)[None, None], (B, K, T)),
        jnp.full((B, K), T, jnp.int32),
    )
    return pack(kept, jnp.full(B, T, jnp.int32), shape)
