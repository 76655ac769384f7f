"""One step: the same on any mesh, in any parts, whatever is kept for its gradient."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from jaxkv.mesh import make_mesh
from jaxkv.train.config import Stage
from jaxkv.train.feeding import Documents
from jaxkv.train.loop import remaining
from jaxkv.train.objectives import CrossEntropy, Divergence, HiddenStates
from jaxkv.train.parts import begin, describe
from jaxkv.train.step import first_state
from tests.train.tiny_runs import RUN

STEPS = 3
MESHES = (
    ("data=8", "auto"),
    ("fsdp=8", "explicit"),
    ("data=2,tensor=4", "auto"),
    ("fsdp=4,tensor=2", "explicit"),
    ("data=2,fsdp=2,tensor=2", "auto"),
)
DISTIL = replace(
    RUN,
    teacher="itself",
    objectives=(CrossEntropy(), Divergence(weight=0.5), HiddenStates(weight=0.1)),
)


def steps_of(config, mesh="data=1", axis_types="auto", devices=1):
    """(losses, the parameters after the last step) of a few steps."""
    if jax.device_count() < devices:
        pytest.skip("needs eight devices")
    on, parts = make_mesh(mesh, axis_types, jax.devices()[:devices]), describe(config)
    losses = []
    with jax.set_mesh(on):
        trained, fixed = begin(parts, on)
        state = first_state(config, trained, on)
        for number, _, step, given in remaining(parts, on, 0):
            state, counts = step(state, fixed, np.int32(number), given)
            losses.append(float(counts["loss"][0] / counts["loss"][1]))
            if len(losses) == STEPS:
                break
    return losses, jax.device_get(state["params"])


@cache
def on_one():
    return steps_of(DISTIL)


def same(ours, theirs, rtol=1e-4):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    for path, x in theirs[1].items():
        np.testing.assert_allclose(ours[1][path], x, rtol=rtol, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(("mesh", "axis_types"), MESHES)
def test_steps_equal_those_of_one_device(mesh, axis_types):
    same(steps_of(DISTIL, mesh, axis_types, 8), on_one())


def test_losses_of_these_steps_differ():
    losses, _ = on_one()
    assert len(set(losses)) == STEPS
