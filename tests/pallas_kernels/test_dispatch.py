"""Programs are traced for the platform that is meant."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from pallas_kernels.layout import page_slots


@pytest.mark.parametrize(
    ("target", "platform"),
    [("cpu",) * 2, ("gpu",) * 2, ("sm90", "gpu"), ("tpu",) * 2, ("any",) * 2],
)
def test_the_platform_of_a_named_target(target, platform):
    with dispatch.compile_for(target):
        assert dispatch.target() == target
        assert dispatch.platform() == platform


def test_a_function_is_traced_for_each_target():
    """And not again for one that it was traced for."""
    traced = []

    @jax.jit
    def inner(x):
        traced.append(dispatch.target())
        return x + 1

    outer = jax.jit(lambda x: inner(x))
    for target in ("tpu", "any", "tpu"):
        with dispatch.compile_for(target):
            outer(jnp.zeros(3))
    outer(jnp.zeros(3))
    assert traced == ["tpu", "any", jax.default_backend()]


def test_an_unknown_target():
    with pytest.raises(ValueError, match="target='T4' is not one of"):
        with dispatch.compile_for("T4"):
            pass


def test_pages_for_a_tpu_fill_its_lanes():
    assert page_slots(100) == 64
    with dispatch.compile_for("tpu"):
        assert page_slots(100) == 128
        assert page_slots(10**6) == 512
