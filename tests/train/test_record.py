"""A run refuses to go on where a model that it reads was changed in place."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxkv.models import folder
from jaxkv.models.presets import random_decoder
from jaxkv.models.safetensors import SINGLE, TensorFile
from jaxkv.models.write_safetensors import write
from jaxkv.train import loop
from jaxkv.train.objectives import CrossEntropy, Divergence
from tests.train.tiny_runs import MODEL, RUN

TEACHER = (CrossEntropy(), Divergence())
RUNS = {
    "teacher": {"model": MODEL, "objectives": TEACHER},
    "frozen": {"trainable": ("layers.*.mlp.*",)},
    "itself": {"teacher": "itself", "objectives": TEACHER},
}
run = partial(loop.train, devices=jax.devices()[:1])


@pytest.mark.parametrize("which", RUNS)
def test_a_model_that_changed_is_named(which, tmp_path):
    read, out = tmp_path / "read", tmp_path / "out"
    folder.save(random_decoder(replace(MODEL, layers=1), 0), None, read)
    given = {"teacher" if which == "teacher" else "model": str(read)}
    config = replace(RUN, **(RUNS[which] | given))
    assert run(config, out, minutes=0.0)["step"] == 1
    before = (read / SINGLE).read_bytes()
    file = TensorFile(read / SINGLE)
    tensors = {name: file.read(name) for name in file.names}
    attention = "model.layers.0.self_attn.o_proj.weight"
    tensors[attention] = tensors[attention] * np.float32(1.5).astype("bfloat16")
    write(read / SINGLE, tensors)
    named = "teacher" if which != "frozen" else "model"
    said = f"The {named} {read} changed since the checkpoint in {out} was saved; put"
    with pytest.raises(ValueError, match=said):
        run(config, out)
    (read / SINGLE).write_bytes(before)
    assert run(config, out)["step"] == config.total
