"""Convolutional attention: its formula, its trail, and rows that documents share."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.attention.convolutional import ConvolutionalAttention
from jaxkv.cache.pages import PoolShape, append, pack, trail_of
from jaxkv.kept import TRAIL, Kept
from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import ConvolutionalSizes

B, S, D = 2, 37, 24
CCGQA = ConvolutionalSizes(query_heads=6, kv_heads=2, head_dim=8, rope_dim=4)
SIZES = {
    "ccgqa": CCGQA,
    "cca": replace(CCGQA, query_heads=2),
    "one kv head": replace(CCGQA, kv_heads=1),
    "all rotated": replace(CCGQA, rope_dim=8),
    "longer kernels": replace(CCGQA, channel_kernel=4, head_kernel=3),
    "no convolution": replace(CCGQA, channel_kernel=1, head_kernel=1),
}


@cache
def make(name="ccgqa"):
    """Attention with temperatures that are not one, hidden states and positions."""
    config = DecoderConfig(width=D, initial_scale=0.3)
    module = ConvolutionalAttention(
        config, SIZES[name], rngs=nnx.Rngs(0), dtype=jnp.float32
    )
    assert (module.temperature[...] == 1).all()
    rng = np.random.default_rng(0)
    temperature = rng.normal(1, 0.2, module.temperature.shape)
    module.temperature[...] = jnp.asarray(temperature, jnp.float32)
    x = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    return module, x, jnp.broadcast_to(jnp.arange(S), (B, S))


def by_the_formula(module, x):
    """out [S, D], keys and values [S, K, H] of one row; token by token in fp64."""
    sizes = module.sizes
    weights = {
        name: np.asarray(w, np.float64)
        for name, w in nnx.to_pure_dict(nnx.state(module)).items()
    }
    K, H = sizes.kv_heads, sizes.head_dim
    G = sizes.query_heads // K
    x = np.asarray(x, np.float64)
    S = len(x)
    # Head by head: the queries of kv head 0, its key, the queries of kv head 1, ...
    z = np.stack([x @ weights["qkv"][:, k, a] for k in range(K) for a in range(G + 1)])
    u = np.concatenate([x @ weights["qkv"][:, k, G + 1] for k in range(K)], axis=-1)
    taps = weights["channels"].reshape(sizes.channel_kernel, K * (G + 1), H)
    mixes = weights["heads"].reshape(sizes.head_kernel, K * (G + 1), H, H)
    bias = weights["channels_bias"].reshape(-1, H)
    mixed_bias = weights["heads_bias"].reshape(-1, H)
    half = sizes.rope_dim // 2

    def first(a, t):
        """What the first convolution gives of head a at t, also before the start."""
        got = bias[a].copy()
        for i in range(sizes.channel_kernel):
            if t - i >= 0:
                got += taps[i, a] * z[a, t - i]
        return got

    def second(a, t):
        got = mixed_bias[a].copy()
        for j in range(sizes.head_kernel):
            got += first(a, t - j) @ mixes[j, a]
        return got

    def turned(y, t):
        angle = t * module.inverse_frequencies.astype(np.float64)
        one, two = y[H - 2 * half : H - half], y[H - half :]
        pairs = (one + 1j * two) * np.exp(1j * angle)
        return np.concatenate([y[: H - 2 * half], pairs.real, pairs.imag])

    q, k = np.zeros((S, K, G, H)), np.zeros((S, K, H))
    v = np.zeros((S, K * H))
    for t in range(S):
        for row in range(K):
            key = row * (G + 1) + G
            skips = []
            for g in range(G):
                a = row * (G + 1) + g
                skips.append((z[a, t] + z[key, t]) / 2)
                y = second(a, t) + skips[-1]
                q[t, row, g] = turned(np.sqrt(H) * y / np.linalg.norm(y), t)
            y = second(key, t) + np.mean(skips, axis=0)
            y = np.sqrt(H) * y / np.linalg.norm(y) * weights["temperature"][row]
            k[t, row] = turned(y, t)
        late = K * H // 2
        v[t, :late] = u[t, :late]
        v[t, late:] = u[t - 1, late:] if t else 0
    v = v.reshape(S, K, H)
    out = np.zeros((S, D))
    for t in range(S):
        for row in range(K):
            for g in range(G):
                logits = k[: t + 1, row] @ q[t, row, g] / np.sqrt(H)
                a = np.exp(logits - logits.max())
                head = a @ v[: t + 1, row] / a.sum()
                out[t] += head @ weights["out"][row, g]
    return out, k, v


@pytest.mark.parametrize("name", SIZES)
def test_it_is_the_formula(name):
    module, x, position = make(name)
    out = jax.jit(module)(x, position)
    _, k, v = jax.jit(module.entries)(x, position)
    for b in range(B):
        right, right_k, right_v = by_the_formula(module, x[b])
        np.testing.assert_allclose(k[b], right_k, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(v[b], right_v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out[b], right, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["ccgqa", "longer kernels", "no convolution"])
@pytest.mark.parametrize("cuts", [(20,), (1, 2, 4)])
def test_blocks_equal_the_whole(name, cuts):
    """Also blocks shorter than the trail is long."""
    module, x, position = make(name)
    run, trail_after = jax.jit(module.entries), jax.jit(module.trail)
    whole = run(x, position)
    trail, parts = None, []
    for start, end in zip((0, *cuts), (*cuts, S), strict=True):
        block = slice(start, end)
        parts.append(run(x[:, block], position[:, block], trail))
        trail = trail_after(x[:, block], jnp.full(B, end - start), trail)
        assert trail.shape == (B, SIZES[name].kv_heads, *SIZES[name].trail)
    for ours, right in zip(zip(*parts, strict=True), whole, strict=True):
        ours = np.concatenate(ours, axis=1)
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=2e-6)
    at_once = trail_after(x, jnp.full(B, S))
    np.testing.assert_allclose(trail, at_once, rtol=1e-6, atol=1e-6)


def test_a_trail_is_read_at_each_rows_own_length():
    module, x, _ = make()
    length = np.array([0, 1, 2, 5])
    x = jnp.concatenate([x, x[::-1]])[:, :9]
    found = np.asarray(module.trail(x, jnp.asarray(length)))
    qkv = np.einsum("btd,dkah->btkah", x, module.qkv[...])
    for b, n in enumerate(length):
        for i, t in enumerate((n - 2, n - 1)):
            right = qkv[b, t] if t >= 0 else np.zeros_like(qkv[b, 0])
            np.testing.assert_allclose(found[b, :, i], right, rtol=1e-5, atol=1e-5)
    # Nothing was added to row 0: it has the trail that it came with.
    again = module.trail(x[:, :3], jnp.array([0, 1, 2, 3]), jnp.asarray(found[::-1]))
    np.testing.assert_array_equal(again[0], found[3])
    np.testing.assert_array_equal(again[1, :, 0], found[2, :, 1])


def test_documents_packed_in_a_row_are_rows_of_their_own():
    module, x, _ = make()
    cuts = (0, 1, 3, 20, S)
    position = np.concatenate(
        [np.arange(b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    )
    segment = np.repeat(np.arange(4), np.diff(cuts))
    position, segment = (
        jnp.broadcast_to(jnp.asarray(a, jnp.int32), (B, S)) for a in (position, segment)
    )
    packed = jax.jit(module)(x, position, segment)
    for start, end in zip(cuts, cuts[1:], strict=False):
        part = slice(start, end)
        alone = jax.jit(module)(x[:, part], position[:, part])
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=2e-5)


def test_what_pages_give_is_what_the_prompt_saw():
    """Decode, a token a step, with the trail beside the pages."""
    module, x, position = make("longer kernels")
    heads, _ = module.attend_prompt(*module.entries(x, position))
    n, K = 20, module.sizes.kv_heads

    @jax.jit
    def decode(pages, one, at):
        before = trail_of(pages, 0)
        q, k, v = module.entries(one, at, before)
        trail = module.trail(one, jnp.ones(B, jnp.int32), before)
        pages = append(pages, k, v, at, 0, trail)
        return module.attend_pages(q, pages, at)[0], pages

    _, k, v = module.entries(x[:, :n], position[:, :n])
    pages = pack(
        Kept(
            k,
            v,
            position[:, :n],
            jnp.broadcast_to(jnp.arange(n)[None, None], (B, K, n)),
            jnp.full((B, K), n),
            row_state={TRAIL: module.trail(x[:, :n], jnp.full(B, n))},
        ),
        jnp.full(B, n, jnp.int32),
        PoolShape(groups=2, rows=1, total=n, most=n, headroom=32, page=16),
    )
    for t in range(n, S):
        found, pages = decode(pages, x[:, t : t + 1], position[:, t : t + 1])
        np.testing.assert_allclose(found[:, 0], heads[:, t], rtol=1e-4, atol=2e-5)
    held = pages.row_state[TRAIL]
    assert held.shape == (B, 2, 1, 1, *module.sizes.trail)
    assert pages.cache_bytes > held.nbytes > 0


def test_gradients_are_finite_and_reach_everything():
    module, x, position = make("longer kernels")

    def loss(module, x):
        return jnp.square(module(x, position)).sum()

    of_module, of_x = jax.jit(jax.grad(loss, (0, 1)))(module, x.at[0].set(0.0))
    for name, gradient in nnx.to_pure_dict(nnx.state(of_module)).items():
        assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).any(), name
    assert np.isfinite(of_x).all()


def test_half_precision_stays_near():
    module, x, position = make()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), module)
    out = jax.jit(half)(x.astype(jnp.bfloat16), position)
    assert out.dtype == jnp.bfloat16
    right = np.asarray(jax.jit(module)(x, position))
    apart = np.abs(np.asarray(out, np.float32) - right).max()
    assert apart < 0.03 * np.abs(right).max()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(kv_heads=4), "query_heads=6 is not a multiple of kv_heads=4"),
        (dict(rope_dim=3), "rope_dim=3 is odd"),
        (dict(rope_dim=10), "more than the 8 numbers"),
        (dict(channel_kernel=0), "channel_kernel=0"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        replace(CCGQA, **sizes)
