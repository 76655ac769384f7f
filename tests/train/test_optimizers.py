"""Every optimizer moves towards the least of a bowl, and leaves vectors undecayed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkv.train.optimizers import SGD, AdamW, Lion, Muon
from jaxkv.train.schedules import Constant, Linear, RiseStayFall, WarmupCosine


@pytest.mark.parametrize("kind", [AdamW, Lion, Muon, SGD])
def test_it_goes_down(kind):
    made = kind(rate=Constant(0.02))(40)
    drawn = np.random.default_rng(0).normal(size=(2, 4, 2, 4))
    params = {"layers.0.attention.qkv": jnp.asarray(drawn, jnp.float32)}
    params["norm.scale"] = jnp.ones(4)

    def bowl(params):
        return sum(jnp.square(x).sum() for x in params.values())

    @jax.jit
    def step(params, state):
        with jax.numpy_dtype_promotion("standard"):
            change, state = made.update(jax.grad(bowl)(params), state, params)
        return optax.apply_updates(params, change), state

    state, before = made.init(params), bowl(params)
    for _ in range(40):
        params, state = step(params, state)
    assert bowl(params) < 0.7 * before


def test_vectors_do_not_decay():
    made = AdamW(rate=Constant(0.1), weight_decay=1.0)(10)
    params = {"norm.scale": jnp.ones(4), "head": jnp.ones((4, 4))}
    nothing = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        change, _ = made.update(nothing, made.init(params), params)
    np.testing.assert_array_equal(change["norm.scale"], 0)
    np.testing.assert_allclose(change["head"], -0.1, rtol=1e-5)


def test_schedules():
    def at(schedule, *numbers):
        rate = schedule(100)
        with jax.numpy_dtype_promotion("standard"):
            return [float(rate(jnp.int32(n))) for n in numbers]

    warm = WarmupCosine(1.0, warmup=10, final=0.1)
    np.testing.assert_allclose(at(warm, 0, 5, 10, 100), [0, 0.5, 1, 0.1], atol=1e-6)
    there = RiseStayFall(1.0, share=0.2, final=0.1)
    np.testing.assert_allclose(
        at(there, 0, 10, 20, 79, 90, 100), [0, 0.5, 1, 1, 0.55, 0.1], atol=1e-6
    )
    np.testing.assert_allclose(at(Linear(1.0, 0.0, 0.5), 25, 50, 90), [0.5, 0, 0])
    assert at(Constant(0.3), 0, 99) == pytest.approx([0.3, 0.3])
