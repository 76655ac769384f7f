"""A checkpoint that Orbax and numpy read alone, onto any devices, to the same bits."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.export.formats import export
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LatentSizes
from jaxkv.params import take_apart
from jaxkv.train.tokenizer import word_tokenizer

CONFIG = DecoderConfig(
    width=32,
    feed_forward=48,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
    stop_tokens=(3,),
    attention=(None, LatentSizes(rank=12, rope_dim=4, nope_dim=8, value_dim=8)),
)
ALONE = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

checkpoint, out = sys.argv[1:]
saved = ocp.metadata(checkpoint).metadata
mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,))
split = lambda x: PartitionSpec("x" if x.shape[0] % 4 == 0 else None)
one = SingleDeviceSharding(jax.devices()[3])

def lying(of):
    return {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of(x))
        for path, x in saved.items()
    }

alone = ocp.load(checkpoint, lying(lambda x: one))
over = ocp.load(checkpoint, lying(lambda x: NamedSharding(mesh, split(x))))
held = ocp.load(checkpoint, {p: np.empty(x.shape, x.dtype) for p, x in saved.items()})
assert all(type(x) is np.ndarray for x in held.values())
assert sum(len(x.sharding.device_set) == 4 for x in over.values()) == len(over)
assert any(not x.is_fully_replicated for x in over.values())
for path, x in held.items():
    assert x.tobytes() == np.asarray(alone[path]).tobytes(), path
    assert x.tobytes() == np.asarray(over[path]).tobytes(), path
assert not {"jaxkv", "flax"} & set(sys.modules)
np.savez(out, **{path: x.view(np.uint16) for path, x in held.items()})
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the model, its folder)."""
    out = tmp_path_factory.mktemp("orbax") / "out"
    model = random_decoder(CONFIG, 0, jnp.bfloat16)
    assert export(model, word_tokenizer(), out, format="orbax") == []
    return model, out


def test_orbax_and_numpy_read_it_without_jaxkv(written, tmp_path):
    """On one device, on a mesh of four, and as arrays of the host."""
    model, out = written
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    read = [sys.executable, "-c", ALONE, str(out / "parameters"), str(tmp_path / "x")]
    run = subprocess.run(
        read, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    found, ours = np.load(tmp_path / "x.npz"), take_apart(model)[0]
    assert set(found) == set(ours)
    for path, x in ours.items():
        np.testing.assert_array_equal(found[path], np.asarray(x).view(np.uint16))


def test_jaxkv_reads_it(written):
    model, out = written
    again, tokenizer = folder.load(out, jnp.bfloat16)
    assert again.config == model.config
    assert tokenizer.to_str() == word_tokenizer().to_str()
    ours, theirs = take_apart(model)[0], take_apart(again)[0]
    assert set(ours) == set(theirs)
    for path, x in ours.items():
        np.testing.assert_array_equal(theirs[path], x)
    names = {x.name for x in out.iterdir()}
    assert {"config.json", "generation_config.json", "jaxkv.json"} <= names


def test_onto_a_mesh_and_to_another_dtype(written):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    model, out = written
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    over, _ = folder.load(out, jnp.float32, mesh)
    ours, theirs = take_apart(model)[0], take_apart(over)[0]
    lies = theirs["layers.0.attention.qkv"].sharding
    assert lies.spec == jax.P("fsdp", "tensor") and lies.mesh == mesh
    for path, x in ours.items():
        np.testing.assert_array_equal(theirs[path], x.astype(jnp.float32))


def test_another_models_config_is_refused(written, tmp_path):
    _, out = written
    other = tmp_path / "other"
    export(random_decoder(CONFIG.only(1), 0), None, other, format="orbax")
    (other / "config.json").write_bytes((out / "config.json").read_bytes())
    with pytest.raises(ValueError, match="is missing where config.json asks"):
        folder.load(other)
