"""What a student and a teacher gave, of random numbers, for tests of objectives."""

import jax.numpy as jnp
import numpy as np

from jaxkv.train.add_ons.base import Attended
from jaxkv.train.forward import Forward
from jaxkv.train.objectives.base import Gave

B, T, D, V, LAYERS = 2, 12, 8, 24, 3


def arrays(seed, *shape):
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32)


def made(seed, kept=None):
    """A model's forward pass that never was."""
    attended = Attended(
        arrays([seed, 1], LAYERS, B, T, D),
        entries=(arrays([seed, 2], LAYERS, B, T, 4),),
        rebuilt=(arrays([seed, 3], LAYERS, B, T, 4),),
    )
    layers = arrays([seed, 4], LAYERS, B, T, D)
    hidden, table = arrays([seed, 5], B, T, D), arrays([seed, 6], V, D)
    return Forward(hidden, table, layers, attended, kept)


def gave(student=0, teacher=1, kept=None):
    """Weights sum to 1, and some are 0."""
    draw = np.random.default_rng(7)
    weight = draw.random((B, T)) * (draw.random((B, T)) < 0.7)
    weight = jnp.asarray(weight / weight.sum(), jnp.float32)
    target = jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32)
    return Gave({}, target, weight, made(student, kept), made(teacher))
