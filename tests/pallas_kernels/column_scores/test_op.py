"""The op on this platform: what it adds to its implementations."""

from functools import partial

import jax
import numpy as np

from pallas_kernels.column_scores import column_scores
from pallas_kernels.column_scores.specs import SPECS
from tests.pallas_kernels.column_scores.test_xla import make


def test_gradients_stop_here():
    arrays, static = make(SPECS[1])
    rest = {name: x for name, x in arrays.items() if name not in ("q", "k")}

    def loss(q, k):
        scores, lse = partial(column_scores, **static)(q, k, **rest)
        return scores.sum() + lse[:, -1].max() + q.sum()

    of_q, of_k = jax.grad(loss, argnums=(0, 1))(arrays["q"], arrays["k"])
    np.testing.assert_array_equal(of_q, 1.0)
    np.testing.assert_array_equal(of_k, 0.0)
