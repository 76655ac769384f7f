"""Targets and weights stay in their segment; weights follow a schedule."""

import jax.numpy as jnp
import numpy as np

from jaxkv.train.objectives import CrossEntropy
from jaxkv.train.objectives.base import targets
from jaxkv.train.schedules import Linear


def test_no_target_lies_in_another_segment():
    batch = {
        "tokens": jnp.array([[5, 6, 7, 8, 9, 0]]),
        "segment": jnp.array([[1, 1, 1, 2, 2, 0]]),
        "weight": jnp.ones((1, 6)),
    }
    target, weight = targets(batch)
    np.testing.assert_array_equal(target[0, :5], [6, 7, 8, 9, 0])
    np.testing.assert_array_equal(weight[0], [1, 1, 0, 1, 0, 0])
    whole = {name: batch[name] for name in ("tokens", "weight")}
    np.testing.assert_array_equal(targets(whole)[1][0], [1, 1, 1, 1, 1, 0])


def test_a_weight_is_a_number_or_a_schedule():
    assert CrossEntropy(weight=0.5).weight_at(10)(jnp.int32(3)) == 0.5
    falling = CrossEntropy(weight=Linear(1.0, 0.0)).weight_at(10)
    found = [falling(jnp.int32(i)) for i in (0, 5, 10, 20)]
    np.testing.assert_allclose(found, [1, 0.5, 0, 0])
