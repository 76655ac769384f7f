"""Latent attention: its formula, the absorbed form, and its entries in pages."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.attend.all_pages import attend
from jaxkv.attention.latent import LatentAttention
from jaxkv.cache.pages import PoolShape, append, pack
from jaxkv.kept import Kept
from jaxkv.models.config import DecoderConfig
from jaxkv.models.frequencies import Yarn
from jaxkv.models.sizes import LatentSizes

B, S, D, N = 2, 150, 40, 4
PLAIN = LatentSizes(rank=24, rope_dim=8, nope_dim=16, value_dim=12)
SIZES = {
    "plain": PLAIN,
    "query rank": replace(PLAIN, query_rank=20),
    "no norm": replace(PLAIN, query_rank=20, norm=False),
    "wide value": replace(PLAIN, value_dim=32),
}
YARN = Yarn(factor=4.0, original_max_position=64, mscale=0.7, mscale_all_dim=1.3)


def make(sizes, scaling=None):
    """Attention with norms that are not all one, hidden states and positions."""
    config = DecoderConfig(
        width=D, query_heads=N, rope_scaling=scaling, initial_scale=0.3
    )
    module = LatentAttention(config, sizes, rngs=nnx.Rngs(0), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    for norm in ("norm", "query_norm") if sizes.norm else ():
        if hasattr(module, norm):
            scale = getattr(module, norm).scale
            scale[...] = jnp.asarray(rng.normal(1, 0.2, scale.shape), jnp.float32)
    x = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    return module, x, jnp.broadcast_to(jnp.arange(S), (B, S))


def by_the_formula(module, x):
    """out [S, D] and lse [S, N] of one row, head by head in fp64."""
    sizes, x = module.sizes, np.asarray(x, np.float64)
    weights = {
        n: np.asarray(w, np.float64)
        for n, w in nnx.to_pure_dict(nnx.state(module)).items()
        if not isinstance(w, dict)
    }

    def normed(c, norm):
        if not sizes.norm:
            return c
        root = np.sqrt(np.square(c).mean(axis=-1, keepdims=True) + 1e-6)
        return c / root * np.asarray(norm.scale[...], np.float64)

    def turned(r):
        half = r.shape[-1] // 2
        angle = np.arange(S)[:, None] * module.inverse_frequencies.astype(np.float64)
        z = (r[:, :half] + 1j * r[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=-1)

    down = x @ weights["down"]
    c, r = down[:, : sizes.rank], turned(down[:, sizes.rank :])
    c = normed(c, getattr(module, "norm", None))
    made_of, up_query = x, weights.get("query")
    if sizes.query_rank is not None:
        made_of = normed(x @ weights["query_down"], getattr(module, "query_norm", None))
        up_query = weights["query_up"]
    out, lse = 0.0, []
    yarn = module.config.rope_scaling
    for n in range(N):
        q = made_of @ up_query[:, n]
        up_k, up_v = np.split(weights["up"][:, n], [sizes.nope_dim], axis=-1)
        z = q[:, : sizes.nope_dim] @ (c @ up_k).T
        rotated = turned(q[:, sizes.nope_dim :]) @ r.T
        if yarn is not None:
            m, of_all = 0.7 * 0.1 * np.log(4) + 1, 1.3 * 0.1 * np.log(4) + 1
            z, rotated = z * of_all**2, rotated * m**2
        z = (z + rotated) / np.sqrt(sizes.nope_dim + sizes.rope_dim)
        z = np.where(np.tri(S, dtype=bool), z, -np.inf)
        total = np.log(np.exp(z).sum(axis=-1))
        out = out + np.exp(z - total[:, None]) @ c @ up_v @ weights["heads_out"][n]
        lse.append(total)
    return out, np.stack(lse, axis=-1)


@pytest.mark.parametrize(
    ("sizes", "scaling"),
    [(sizes, None) for sizes in SIZES.values()] + [(PLAIN, YARN)],
    ids=[*SIZES, "yarn"],
)
def test_naive_is_the_formula_and_absorbed_equals_naive(sizes, scaling):
    module, x, position = make(sizes, scaling)
    heads, lse = module.attend_prompt(*module.entries(x, position))
    out = module(x, position)
    for b in range(B):
        right, right_lse = by_the_formula(module, x[b])
        np.testing.assert_allclose(out[b], right, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(lse[b], right_lse, rtol=1e-4, atol=1e-4)
    q, k, v = module.entries(x, position)
    assert v is None and k.shape == (B, S, 1, sizes.entry)
    pages = pages_of(k[:, :100])
    pages = append(pages, k[:, 100:], None, position[:, 100:])
    absorbed, lse_BJRTG, logits = module.attend_pages(
        q[:, 100:], pages, position[:, 100:], return_logits=True
    )
    np.testing.assert_allclose(absorbed, heads[:, 100:], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(lse_BJRTG[:, 0, 0], lse[:, 100:], rtol=1e-5, atol=1e-5)
    total = jnp.exp(logits - lse_BJRTG[:, :, :1, :, :, None]).sum(axis=(2, 5))
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)


def test_attend_of_models_that_are_not_ours():
    """Absorbed queries against pages, without the module that makes them."""
    module, x, position = make(PLAIN)
    q, k, _ = module.entries(x, position)
    pages = pages_of(k)
    asked = module.asked(q[:, -3:])
    out, lse = attend(asked, pages, scale=module.scale, value_dim=PLAIN.rank)
    assert out.shape == (B, 3, N, PLAIN.rank)
    mixed = jnp.einsum("BTNR,NRD->BTD", out, module.of_values()[0])
    np.testing.assert_allclose(mixed, module(x, position)[:, -3:], rtol=1e-4, atol=1e-4)
    _, right = module.attend_prompt(*module.entries(x, position))
    np.testing.assert_allclose(lse, right[:, -3:], rtol=1e-5, atol=1e-5)


def test_entries_in_any_order():
    module, x, position = make(SIZES["query rank"])
    q, k, v = module.entries(x, position)
    heads, lse = module.attend_prompt(q, k, v)
    order = np.random.default_rng(1).permutation(S)
    found, found_lse = module.attend_entries(
        q[:, 60:], k[:, order], v, position[:, 60:], position[:, None, order]
    )
    np.testing.assert_allclose(found, heads[:, 60:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_lse, lse[:, 60:], rtol=1e-5, atol=1e-5)


def test_asked_and_of_values_are_what_scores_look_at():
    """The layer's output from absorbed queries, entries and `of_values` alone."""
    module, x, position = make(PLAIN)
    q, k, _ = module.entries(x, position)
    z = jnp.einsum("BTNH,BSH->BNTS", module.asked(q), k[:, :, 0]) * module.scale
    z = jnp.where(jnp.tri(S, dtype=bool)[None, None], z, -jnp.inf)
    mixed = jnp.einsum(
        "BNTS,BSR->BTNR", jax.nn.softmax(z), k[:, :, 0, : module.value_dim]
    )
    out = jnp.einsum("BTNR,NRD->BTD", mixed, module.of_values()[0])
    np.testing.assert_allclose(out, module(x, position), rtol=1e-4, atol=1e-4)


def test_a_prompt_in_segments_attends_to_its_own():
    module, x, _ = make(PLAIN)
    position = jnp.concatenate([jnp.arange(70), jnp.arange(S - 70)])
    position = jnp.broadcast_to(position, (B, S))
    segment = jnp.broadcast_to(jnp.arange(S) >= 70, (B, S)).astype(jnp.int32)
    both = module(x, position, segment)
    for part in (slice(0, 70), slice(70, S)):
        alone = module(x[:, part], position[:, part])
        np.testing.assert_allclose(both[:, part], alone, rtol=1e-4, atol=1e-5)


def test_bytes_are_the_latents():
    """2 (R + rope_dim) a token in bf16, whole pages of them, and what a slot is."""
    entry = jnp.zeros((B, S, 1, PLAIN.entry), jnp.bfloat16)
    pages = pages_of(entry)
    used = -(-S // pages.page) * B  # whole pages
    per_slot = 2 * PLAIN.entry + 4  # and its position
    dealt = pages.owner.size * 4 + pages.table.size * 4 + pages.length.size * (4 + 1)
    free = pages.owner.size - used
    assert pages.cache_bytes == used * pages.page * per_slot + dealt - 4 * free + 4 * B


@pytest.mark.parametrize("sizes", [dict(rope_dim=7), dict(rank=0), dict(query_rank=0)])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}="):
        replace(PLAIN, **sizes)


def pages_of(entry):
    """Every entry of each row in pages, with room for 64 more."""
    B, T = entry.shape[:2]
    shape = PoolShape(groups=1, rows=1, total=T, most=T, headroom=64, page=64)
    kept = Kept(
        entry,
        None,
        jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
        jnp.broadcast_to(jnp.arange(T)[None, None], (B, 1, T)),
        jnp.full((B, 1), T, jnp.int32),
    )
    return pack(kept, jnp.full(B, T, jnp.int32), shape)
