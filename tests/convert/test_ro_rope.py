"""RoRoPE: the turn is orthogonal, gathers energy, and commutes with RoPE."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.rope import rotate
from jaxkv.convert.ro_rope import folds, turn
from jaxkv.models.frequencies import inverse_frequencies


def keys(heads, size, seed=0):
    """[S, K, H], some directions of which are much stronger."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(heads * size, heads * size)) ** 3
    return (rng.normal(size=(300, heads * size)) @ mixed).reshape(300, heads, size)


def moments(k_SKH):
    S, K, H = k_SKH.shape
    k_SKAP = k_SKH.reshape(S, K, 2, H // 2)
    return np.einsum("SKAP,SMAQ->KPMQ", k_SKAP, k_SKAP)


SIZES = {  # heads, head_dim, fold, collapse
    "one head": (1, 8, 1, 1),
    "plain": (3, 8, 1, 1),
    "collapsed": (2, 16, 2, 2),
    "folded": (4, 16, 4, 2),
    "odd": (3, 24, 6, 3),
    "all folded": (2, 12, 6, 2),
}


@pytest.mark.parametrize(
    ("heads", "size", "fold", "collapse"), SIZES.values(), ids=SIZES
)
def test_a_turn_is_orthogonal_and_gathers_energy(heads, size, fold, collapse):
    k_SKH = keys(heads, size)
    found = turn(moments(k_SKH), fold, collapse)
    flat = found.reshape(heads * size, -1)
    np.testing.assert_allclose(flat.T @ flat, np.eye(heads * size), atol=1e-10)
    turned = np.einsum("SKH,KHW->SW", k_SKH, found)
    energy = np.square(turned).sum(axis=0)
    kept = size // collapse
    assert energy[:kept].mean() >= energy[kept:].mean() if heads > 1 else True
    # Both numbers of a pair turn alike: the second half of what is rotated is made of
    # second halves as the first is of first ones.
    half = size // 2
    np.testing.assert_array_equal(found[:, :half, kept // 2 : kept], 0)
    np.testing.assert_array_equal(
        found[:, :half, : kept // 2], found[:, half:, kept // 2 : kept]
    )


def test_more_folding_gathers_more():
    k_SKH = keys(3, 16)
    held = []
    for fold in folds(8, 2):
        turned = np.einsum("SKH,KHW->SW", k_SKH, turn(moments(k_SKH), fold, 2))
        held.append(np.square(turned[:, :8]).sum())
    assert held == sorted(held) and held[0] < held[-1]
    assert folds(8, 2) == [2, 4, 8] and folds(12, 3) == [3, 6, 12]


@pytest.mark.parametrize("heads", [1, 3])
def test_it_commutes_with_rope(heads):
    """Without folding every column has the frequency of the pair that it is of."""
    H = 8
    k_SKH = keys(heads, H)
    found = turn(moments(k_SKH), 1, 1)
    frequency = inverse_frequencies(H, 100.0)
    of_rest = np.repeat(frequency, heads - 1)
    position = jnp.arange(300)[None] * 3

    def rotated(x, frequencies):
        return np.asarray(
            rotate(jnp.asarray(x, jnp.float32)[None], position, frequencies)
        )[0]

    before = np.einsum("SKH,KHW->SW", rotated(k_SKH, frequency), found)
    after = np.einsum("SKH,KHW->SW", k_SKH, found)
    first = rotated(after[:, None, :H], frequency)[:, 0]
    np.testing.assert_allclose(first, before[:, :H], rtol=1e-4, atol=1e-2)
    if heads > 1:
        rest = rotated(after[:, None, H:], of_rest)[:, 0]
        np.testing.assert_allclose(rest, before[:, H:], rtol=1e-4, atol=1e-2)
