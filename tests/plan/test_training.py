"""A small run's plan on CPU devices: kinds of bytes, collectives, FLOPs."""

from dataclasses import replace

import jax
import pytest

from jaxkv.models.config import DecoderConfig
from jaxkv.plan.topologies import CHIPS
from jaxkv.plan.training import plan_training
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import Divergence, HiddenStates
from jaxkv.train.recipe import Recipe

CONFIG = Train(
    model=DecoderConfig(
        width=32, feed_forward=64, layers=4, query_heads=4, kv_heads=2, head_dim=16
    ),
    stages=(Stage(100, Documents(((8, 128),), Recipe(gaps=0.0))),),
    objectives=(Divergence(), HiddenStates()),
    teacher="itself",
    remat="full",
    dtype="float32",
    mesh="fsdp=4,tensor=2",
)


@pytest.fixture(scope="module")
def plan():
    return plan_training(CONFIG, jax.devices(), None, "cpu")


def test_every_byte_of_the_arguments_has_its_kind(plan):
    kinds = plan.step.bytes
    assert "alignment" not in kinds
    assert kinds["optimizer"] == pytest.approx(2 * kinds["parameters"], rel=0.01)
    assert kinds["teacher"] == kinds["parameters"]
    sizes = 2 * 512 * 32 + 4 * (32 * 2 * 4 * 16 + 4 * 16 * 32 + 3 * 32 * 64)
    assert kinds["parameters"] == sizes * 4 // 8 + (2 * 4 + 1) * 32 * 4


def test_sums_are_the_memory_analysis(plan):
    """Of the same step, compiled once more."""
    from jaxkv.mesh import make_mesh
    from jaxkv.train.parts import describe
    from jaxkv.train.step import lower

    mesh = make_mesh(CONFIG.mesh)
    memory = lower(describe(CONFIG), mesh, CONFIG.stages[0]).compile().memory_analysis()
    assert plan.step.total_bytes == (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def test_layers_are_gathered_in_each_pass(plan):
    """Forward, again in the backward pass, and the teacher's: by four layers each."""
    axes = {one.axes for one in plan.step.collectives}
    assert "fsdp" in axes and "tensor" in axes
    gathered = [one for one in plan.step.collectives if one.kind == "all-gather"]
    layers = CONFIG.model.layers
    assert sum(one.times for one in gathered if "fsdp" in one.axes) >= 3 * layers


def test_figures_follow_from_each_other(plan):
    assert (plan.tokens, plan.steps) == (8 * 128, 100)
    assert plan.step.flops * 8 > plan.needed_flops > 0
    assert plan.days(CHIPS["v5e"]) is None  # of a CPU no time is told


def test_a_mesh_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match="asks for 4 devices"):
        plan_training(replace(CONFIG, mesh="fsdp=4"), jax.devices(), None, "cpu")
    with pytest.raises(ValueError, match="does not divide"):
        plan_training(replace(CONFIG, mesh="tensor=8"), jax.devices(), None, "cpu")
