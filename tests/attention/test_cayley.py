"""The Cayley form: orthogonal both ways, for every matrix once signs are turned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.cayley import cayley, inverse_cayley, proper


def orthogonal(size, seed=0, count=3):
    drawn = np.random.default_rng(seed).normal(size=(count, size, size))
    return np.linalg.qr(drawn)[0]


def test_free_numbers_give_rotations_and_come_back():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 12, 12)), jnp.float32)
    q = np.asarray(cayley(x))
    same = np.broadcast_to(np.eye(12), q.shape)
    np.testing.assert_allclose(q @ q.swapaxes(-1, -2), same, atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(q), 1, atol=1e-4)
    found = inverse_cayley(q)
    assert not np.triu(found).any()  # only what is below the diagonal is free
    skew = np.asarray(x - x.swapaxes(-1, -2))
    scale = np.abs(skew).max()
    back = found - found.swapaxes(-1, -2)
    np.testing.assert_allclose(back / scale, skew / scale, atol=1e-3)
    half = jnp.asarray(np.tril(np.asarray(x), -1), jnp.bfloat16)
    assert cayley(half).dtype == jnp.bfloat16
    np.testing.assert_array_equal(cayley(jnp.zeros((4, 4))), np.eye(4))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_every_basis_has_a_form_once_signs_are_turned(size):
    """Reflections, half turns and orders of the axes, too, that have none."""
    one = np.eye(size)
    worst = [one, -one, one[::-1], np.roll(one, 1, axis=0)]
    flipped = orthogonal(size)
    flipped[:, :, 0] *= np.sign(np.linalg.det(flipped))[:, None]
    bases = np.concatenate([orthogonal(size), -flipped, flipped, np.stack(worst)])
    turned = proper(bases)
    np.testing.assert_allclose(np.abs(turned), np.abs(bases))
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-9)
    again = cayley(jnp.asarray(inverse_cayley(turned), jnp.float32))
    np.testing.assert_allclose(again, turned, atol=2e-5)


def test_what_has_no_form_says_why():
    with pytest.raises(ValueError, match="eigenvalue of -1"):
        inverse_cayley(-np.eye(4))
    with pytest.raises(ValueError, match="not orthogonal"):
        inverse_cayley(np.ones((3, 3)))


def test_it_has_a_gradient():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)), jnp.float32)
    gradient = jax.grad(lambda x: cayley(x)[0, 1])(x)
    up, down = (cayley(x.at[2, 1].add(step))[0, 1] for step in (1e-2, -1e-2))
    np.testing.assert_allclose(gradient[2, 1], (up - down) / 2e-2, rtol=1e-2)
    np.testing.assert_allclose(gradient, -gradient.T, atol=1e-6)
