"""Meshes from texts, and where each parameter lies on one."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxkv.mesh import make_mesh
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import preset, preset_names
from jaxkv.params import take_apart
from jaxkv.rules import sharding, shardings

P = PartitionSpec


@pytest.fixture(scope="module")
def devices():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    return jax.devices()[:8]


def test_a_mesh_has_all_axes(devices):
    mesh = make_mesh("fsdp=4, data=2", "explicit", devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert dict(make_mesh("auto", "auto", devices).shape)["fsdp"] == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=2,fsdp=2", "asks for 4 devices .data 2 x fsdp 2. and there are 8"),
        ("data=2,model=4", "names the axis 'model'; there are data, fsdp, tensor"),
        ("data=2,data=4", "names the axis data twice"),
        ("data=two", "gives data the length 'two'"),
        ("fsdp=0", "gives fsdp the length '0'"),
        ("8", "names the axis '8'"),
        ("", "names the axis ''"),
    ],
)
def test_what_is_no_mesh_is_told(text, said, devices):
    with pytest.raises(ValueError, match=said):
        make_mesh(text, "auto", devices)
    with pytest.raises(ValueError, match="axis_types='both'; give auto or explicit"):
        make_mesh("auto", "both", devices)


CONVOLUTIONS = (
    "attention.channels",
    "attention.channels_bias",
    "attention.heads",
    "attention.heads_bias",
    "attention.temperature",
)


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_every_parameter_of_every_shape_has_a_rule(name, devices):
    config = DecoderConfig() if name is None else preset(name)
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    params, _ = take_apart(model)
    lies = shardings(make_mesh("fsdp=4,tensor=2", "auto", devices), params)
    for path, x in params.items():
        part = np.prod(lies[path].shard_shape(x.shape))
        # All heads read what makes latents, so that the tensor axis does not divide it.
        over = 4 if path.endswith(("attention.down", "attention.query_down")) else 8
        if path.endswith(CONVOLUTIONS):  # of heads, and small beside the projections
            assert part * 2 == x.size, path
            continue
        # Scales, and bases of a head's size, every device has.
        small = x.ndim == 1 or path.endswith(("_basis", "_mean"))
        assert part == x.size if small else part * over == x.size, path


def test_what_an_optimizer_keeps_lies_as_its_parameter(devices):
    import optax

    mesh = make_mesh("fsdp=8", "auto", devices)
    params = {"layers.0.mlp.down": jax.ShapeDtypeStruct((16, 32), "float32")}
    kept = jax.eval_shape(optax.adamw(1e-3).init, params)
    found = jax.tree.leaves(shardings(mesh, kept))
    specs = [lies.spec for lies in found if lies.spec != P()]
    assert specs == [P("tensor", "fsdp")] * 2 and len(found) > 2


def test_what_no_rule_names_is_told(devices):
    mesh = make_mesh("fsdp=8", "auto", devices)
    with pytest.raises(ValueError, match="the parameter layers.0.attention.other is"):
        sharding(mesh, "layers.0.attention.other", (8, 8))


def test_an_axis_that_does_not_divide_is_told(devices):
    mesh = make_mesh("tensor=8", "auto", devices)
    said = (
        "axis tensor of 8 does not divide dimension 1 of layers.3.attention.qkv, "
        r"which is 4 of \[256, 4, 4, 64\]"
    )
    with pytest.raises(ValueError, match=said):
        sharding(mesh, "layers.3.attention.qkv", (256, 4, 4, 64))
