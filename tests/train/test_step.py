"""One step: the same on any mesh, in any parts, whatever is kept for its gradient."""

import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jaxkv.mesh import make_mesh
from jaxkv.models.folder import save
from jaxkv.models.layers import ONE_HOT_VOCABULARY
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import ConvolutionalSizes, LatentSizes
from jaxkv.train.config import Stage
from jaxkv.train.feeding import Documents
from jaxkv.train.forward import REMAT
from jaxkv.train.loop import remaining
from jaxkv.train.objectives import CrossEntropy, Divergence, HiddenStates
from jaxkv.train.parts import begin, describe
from jaxkv.train.step import first_state, lower
from tests.train.tiny_runs import MODEL, RUN, Packed

STEPS = 3
MESHES = (
    ("data=8", "auto"),
    ("fsdp=8", "explicit"),
    ("data=2,tensor=4", "auto"),
    ("fsdp=4,tensor=2", "auto"),
    ("data=2,fsdp=2,tensor=2", "explicit"),
)
DISTIL = replace(
    RUN,
    model=replace(MODEL, tie_embeddings=False),
    teacher="itself",
    objectives=(CrossEntropy(), Divergence(weight=0.5), HiddenStates(weight=0.1)),
)
TAUGHT = (CrossEntropy(), Divergence())
DRAWN = replace(
    RUN,
    model=replace(MODEL, layers=1, vocabulary=512, max_position=8192),
    stages=(Stage(STEPS, Documents(((5, 64),))),),
)
SIZES = LatentSizes(rank=16, rope_dim=4, nope_dim=8, value_dim=12, query_rank=8)
CONVOLVED = ConvolutionalSizes(query_heads=8, kv_heads=4, head_dim=8, rope_dim=4)
HYBRID = replace(
    DISTIL,
    model=replace(
        MODEL,
        layers=5,
        attention=(SIZES, SIZES, None, replace(SIZES, rank=8), CONVOLVED),
    ),
)


def mesh_of(text, axis_types, devices):
    if jax.device_count() < devices:
        pytest.skip("needs eight devices")
    return make_mesh(text, axis_types, jax.devices()[:devices])


def steps_of(config, mesh="data=1", axis_types="auto", devices=1):
    """(losses, the parameters after the last step) of a few steps."""
    on, parts = mesh_of(mesh, axis_types, devices), describe(config)
    losses = []
    with jax.set_mesh(on):
        trained, fixed = begin(parts, on)
        state = first_state(config, trained, on)
        for number, step, given, *_ in remaining(parts, on, 0):
            state, counts = step(state, fixed, np.int32(number), given)
            losses.append(float(counts["loss"][0] / counts["loss"][1]))
            if len(losses) == STEPS:
                break
    return losses, jax.device_get(state["params"])


@cache
def on_one(config=DISTIL):
    return steps_of(config)


def same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    for path, x in theirs[1].items():
        np.testing.assert_allclose(ours[1][path], x, rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(("mesh", "axis_types"), MESHES)
def test_steps_equal_those_of_one_device(mesh, axis_types):
    assert len(set(on_one()[0])) == STEPS
    same(steps_of(DISTIL, mesh, axis_types, 8), on_one())


@pytest.mark.parametrize(("mesh", "axis_types"), MESHES[2:])
def test_layers_of_every_kind_lie_on_a_mesh_too(mesh, axis_types):
    same(steps_of(HYBRID, mesh, axis_types, 8), on_one(HYBRID))


def test_documents_are_the_same_on_any_mesh():
    """Five rows, which are filled up for eight devices."""
    losses, _ = steps_of(DRAWN, "data=2,fsdp=4", "explicit", 8)
    np.testing.assert_allclose(losses, on_one(DRAWN)[0], rtol=1e-4)


def test_parts_of_a_batch_one_after_another_are_the_batch():
    in_four = replace(DISTIL, micro=4)
    same(steps_of(in_four), on_one())
    same(steps_of(in_four, "fsdp=2", "explicit", 2), on_one())


@pytest.mark.parametrize("remat", sorted(set(REMAT) - {"none"}))
def test_what_is_kept_for_the_gradient_does_not_change_it(remat):
    same(steps_of(replace(DISTIL, remat=remat)), on_one())


def test_packed_documents_do_not_see_each_other():
    """A step on rows of two documents is one on as many rows of one."""
    packed = Stage(1, Packed())
    batch = packed.feed.numbered(RUN.seed, 0, MODEL.vocabulary)

    class Apart(Packed):
        def numbered(self, seed, number, vocabulary):
            rows = [alone(batch, row, s) for row in range(8) for s in (1, 2)]
            return {name: np.stack([row[name] for row in rows]) for name in batch}

    def alone(batch, row, segment):
        own = batch["segment"][row] == segment
        made = {name: np.zeros_like(x[row]) for name, x in batch.items()}
        for name, x in batch.items():
            made[name][: own.sum()] = x[row][own]
        made["segment"] = np.minimum(made["segment"], 1)
        return made

    one = replace(RUN, stages=(packed,))
    apart = replace(RUN, stages=(Stage(1, Apart(rows=16)),))
    same(steps_of(apart), steps_of(one))


def test_what_is_frozen_has_neither_gradient_nor_optimizer_state():
    config = replace(DISTIL, trainable=("layers.*.attention.*",))
    parts, on = describe(config), mesh_of("data=1", "auto", 1)
    trained, fixed = begin(parts, on)
    layers = [f"layers.{i}.attention" for i in (0, 1)]
    assert set(trained) == {f"{x}.{name}" for x in layers for name in ("qkv", "out")}
    assert set(fixed["teacher"]) == set(trained)  # the rest it shares
    held = first_state(config, trained, on)["optimizer"]
    paths = [
        keys[-1].key
        for keys, _ in jax.tree_util.tree_leaves_with_path(held)
        if isinstance(keys[-1], jax.tree_util.DictKey)
    ]
    assert set(paths) == set(trained)
    losses, after = steps_of(config)
    assert set(after) == set(trained) and len(set(losses)) == STEPS
    program = lower(parts, on, config.stages[0]).as_text()
    shape = "x".join(str(size) for size in parts.shapes["layers.0.mlp.gate_up"].shape)
    assert not re.search(rf"dot_general.*-> tensor<{shape}xf32>", program)


def test_what_fits_no_pattern_or_has_no_teacher_is_told():
    with pytest.raises(ValueError, match="'layers.9.*' *, which fits no parameter"):
        describe(replace(RUN, trainable=("layers.9.*",)))
    with pytest.raises(ValueError, match="Divergence compares with a teacher"):
        describe(replace(RUN, objectives=(Divergence(),)))


def test_a_teacher_of_other_tokens_is_refused(tmp_path):
    """More of them, or as many that are not the same words."""
    larger = replace(MODEL, layers=1, vocabulary=72)
    save(random_decoder(larger, 0), None, tmp_path / "larger")
    with pytest.raises(ValueError, match="knows 72 tokens and the student 64"):
        given = {"teacher": str(tmp_path / "larger"), "objectives": TAUGHT}
        describe(replace(RUN, **given))
    words = [f"w{i}" for i in range(64)]
    for name, own in (("a", words), ("b", words), ("c", [*words[:-2], "x", "y"])):
        tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(own)}, "w0"))
        tokenizer.add_special_tokens([f"<reserved {name}>"])
        save(random_decoder(replace(MODEL, layers=1), 0), tokenizer, tmp_path / name)
    student = replace(RUN, model=str(tmp_path / "a"), objectives=TAUGHT)
    describe(replace(student, teacher=str(tmp_path / "b")))
    with pytest.raises(ValueError, match="tokenizer is not the student's: 4 words"):
        describe(replace(student, teacher=str(tmp_path / "c")))


def test_no_program_has_all_logits():
    """Of a vocabulary whose embedding's gradient is no product with one-hot rows."""
    rows, length, words = 8, 48, ONE_HOT_VOCABULARY + 8
    size = rows * length * words * 4 // 4
    config = replace(
        DISTIL,
        model=replace(DISTIL.model, vocabulary=words),
        objectives=(
            CrossEntropy(logits_bytes=size),
            Divergence(weight=0.5, logits_bytes=size),
        ),
    )
    on = mesh_of("data=1", "auto", 1)
    program = lower(describe(config), on, config.stages[0]).compile().as_text()
    assert f"f32[{rows},{length // 4},{words}]" in program
    assert not re.search(rf"f32\[({rows},{length}|{rows * length}),{words}\]", program)


def test_fsdp_splits_all_that_is_large_and_the_memory_of_a_step():
    """Gate: no whole tensor above 1 MB on a device; a sixth of one device's memory."""
    shape = {"width": 512, "feed_forward": 512, "head_dim": 64, "vocabulary": 512}
    config = replace(
        RUN,
        model=replace(MODEL, layers=8, **shape),
        stages=(Stage(1, Packed(rows=8, length=128)),),
        remat="full",
    )
    parts, used = describe(config), []
    for text, devices in (("data=1", 1), ("fsdp=8", 8)):
        on = mesh_of(text, "auto", devices)
        lowered = lower(parts, on, config.stages[0])
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        used.append(held + memory.output_size_in_bytes - memory.alias_size_in_bytes)
    assert used[1] <= used[0] / 6, used
    state = lowered.args_info[0][0]
    lies = compiled.input_shardings[0][0]
    large = 0
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(lies), strict=True):
        if np.prod(x.shape) * 4 >= 1 << 20:
            large += 1
            assert np.prod(sharding.shard_shape(x.shape)) * 8 == np.prod(x.shape)
    assert large == 3 * (8 * 4 + 1)  # of the parameters, and of both of Adam's moments
