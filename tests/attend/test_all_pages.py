"""Reading a layer of a wide pool is reading a pool of that layer alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attend import all_pages
from jaxkv.attend.all_pages import attend
from jaxkv.cache.pages import PoolShape, append, one_layer, pack
from jaxkv.kept import Kept

B, S, L, J, R, N, H, P = 2, 60, 3, 2, 2, 8, 16, 8
WIDE = PoolShape(groups=J, rows=L * R, total=160, most=60, headroom=5, page=P, span=L)
ONE = replace(WIDE, rows=R, span=1)


@pytest.fixture(scope="module")
def kept():
    """Heads [J, L, R] of very unlike lengths, one of them empty."""
    rng = np.random.default_rng(0)
    K = J * L * R
    k, v = rng.normal(size=(2, B, S, K, H)).astype(np.float32)
    order = np.argsort(rng.random((B, K, S)), axis=-1).astype(np.int32)
    length = rng.integers(1, 40, (B, K))
    length[0, 1] = 0
    position = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    bias = rng.normal(size=(B, K, S)).astype(np.float32)
    arrays = map(jnp.asarray, (k, v, position, order, length))
    return Kept(*arrays, slot_state={"bias": jnp.asarray(bias)})


def of_layer(kept, layer):
    """The heads [J, R] of one layer."""
    heads = np.arange(J * L * R).reshape(J, L, R)[:, layer].ravel()
    return replace(
        kept,
        k=kept.k[:, :, heads],
        v=kept.v[:, :, heads],
        order=kept.order[:, heads],
        length=kept.length[:, heads],
        slot_state={name: x[:, heads] for name, x in kept.slot_state.items()},
    )


packed = jax.jit(pack, static_argnames="shape")


def reader():
    """A new program: CHUNK is read when it is traced."""
    return jax.jit(
        lambda *args, layer=0: attend(*args, layer=layer), static_argnames="layer"
    )


@pytest.mark.parametrize("chunk", [4, 64])
def test_each_layer_of_a_wide_pool(kept, chunk, monkeypatch):
    monkeypatch.setattr(all_pages, "CHUNK", chunk)
    wide, read = packed(kept, jnp.full(B, S), shape=WIDE), reader()
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(B, 2, N, H)), jnp.float32)
    at = jnp.full((B, 2), S)
    k, v = jnp.asarray(rng.normal(size=(2, B, 2, J * R, H)), jnp.float32)
    new = jnp.broadcast_to(S + jnp.arange(2, dtype=jnp.int32), (B, 2))
    for layer in range(L):
        one = packed(of_layer(kept, layer), jnp.full(B, S), shape=ONE)
        for ours, theirs in zip(
            read(q, wide, at, layer=layer), read(q, one, at), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        view = one_layer(wide, layer)
        np.testing.assert_array_equal(view.length, one.length)
        wide, one = append(wide, k, v, new, layer), append(one, k, v, new)
        for ours, theirs in zip(
            read(q, wide, at + 9, layer=layer), read(q, one, at + 9), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        went_on = S + 2 if layer == L - 1 else S
        np.testing.assert_array_equal(wide.next_position, [went_on] * B)
    assert not wide.overflow.any()


def test_only_the_layers_own_pages_are_read(kept):
    """Other layers' entries may be anything, as large as numbers go."""
    wide = packed(kept, jnp.full(B, S), shape=WIDE)
    q = jnp.ones((B, 1, N, H))
    read = reader()
    clean, _ = read(q, wide, jnp.full((B, 1), S), layer=1)
    others = (one_layer(wide, 1).owner < 0)[..., None, None]
    entry = jax.tree.map(lambda x: jnp.where(others, 1e30, x), wide.entry)
    dirty, _ = read(q, replace(wide, entry=entry), jnp.full((B, 1), S), layer=1)
    np.testing.assert_array_equal(clean, dirty)
