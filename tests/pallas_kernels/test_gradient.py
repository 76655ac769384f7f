"""A kernel's own values, with XLA's gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.gradient import with_gradient_of


def test_values_are_the_kernels_and_gradients_those_of_xla():
    def xla(arrays):
        return arrays["x"] ** 2 * arrays["times"].astype(jnp.float32), None

    def kernel(arrays):
        return jax.lax.stop_gradient(xla(arrays)[0] + 1), None

    both = with_gradient_of(xla, kernel)

    def loss(x):
        arrays = {"x": x, "times": jnp.array([1, 2, 3]), "none": None}
        return both(arrays)[0].sum()

    x = jnp.array([1.0, -2.0, 3.0])
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert value == 1 + 8 + 27 + 3
    np.testing.assert_array_equal(gradient, [2, -8, 18])
