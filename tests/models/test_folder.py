"""A model folder: saved and loaded again bit for bit, and refused when it is wrong."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models

from jaxkv.mesh import make_mesh
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load, save, stored_dtype
from jaxkv.models.frequencies import RopeScaling
from jaxkv.models.hash import model_hash
from jaxkv.models.presets import random_decoder
from jaxkv.models.safetensors import INDEX, SINGLE, TensorFile
from jaxkv.models.sizes import ConvolutionalSizes
from jaxkv.models.write_safetensors import write, write_folder
from jaxkv.params import take_apart
from jaxkv.rules import shardings
from tests.models import reads
from tests.models.reads import count_reads

SIZES = dict(vocabulary=40, width=24, feed_forward=36, layers=2, head_dim=8)
CONFIGS = {
    "llama": DecoderConfig(
        **SIZES, query_heads=6, kv_heads=2, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)
    ),
    "tied": DecoderConfig(
        **SIZES, query_heads=4, kv_heads=1, tie_embeddings=True, stop_tokens=(3, 5)
    ),
    "qwen3": DecoderConfig(
        **SIZES,
        architecture="Qwen3ForCausalLM",
        query_heads=4,
        kv_heads=4,
        qk_norm=True,
        stop_tokens=(3,),
    ),
    "convolutional": DecoderConfig(
        **SIZES,
        attention=(
            ConvolutionalSizes(6, 2, head_dim=10, rope_dim=4, channel_kernel=3),
            None,
        ),
    ),
}


def make_tokenizer() -> Tokenizer:
    words = {f"w{i}": i for i in range(40)}
    return Tokenizer(models.WordLevel(words, unk_token="w0"))


def fresh(name: str, dtype=jnp.float32):
    """A random model whose norm scales are not all one."""
    model = random_decoder(CONFIGS[name], 0, dtype)
    noise = jax.random.normal(jax.random.key(7), (24,)).astype(dtype)
    model.norm.scale[...] = noise
    model.layers[1].mlp_norm.scale[...] = -noise
    return model


def assert_same(ours, theirs):
    ours, theirs = (nnx.to_pure_dict(nnx.state(m)) for m in (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    save(fresh("llama"), make_tokenizer(), path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A fresh copy of a saved model, to be spoiled."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", jnp.float32),
        ("tied", jnp.bfloat16),
        ("qwen3", jnp.float16),
        ("convolutional", jnp.float32),
    ],
)
def test_round_trip(tmp_path, name, dtype):
    model = fresh(name, dtype)
    save(model, make_tokenizer(), tmp_path / "model")
    again, tokenizer = load(tmp_path / "model", dtype)
    assert again.config == model.config
    assert tokenizer.to_str() == make_tokenizer().to_str()
    assert_same(again, model)
    save(again, tokenizer, tmp_path / "second")
    for file in (tmp_path / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_loads_in_another_dtype(tmp_path):
    model = fresh("llama", jnp.bfloat16)
    save(model, None, tmp_path / "model")
    wide, tokenizer = load(tmp_path / "model")
    assert tokenizer is None
    assert wide.table[...].dtype == jnp.float32
    np.testing.assert_array_equal(wide.table[...], model.table[...].astype("float32"))
    save(wide, None, tmp_path / "narrow", dtype=jnp.bfloat16)
    assert_same(load(tmp_path / "narrow", jnp.bfloat16)[0], model)


def test_loads_shards(folder):
    whole, _ = load(folder)
    file = TensorFile(folder / SINGLE)
    tensors = {name: file.read(name) for name in file.names}
    places = {}
    for i, part in enumerate((file.names[::2], file.names[1::2])):
        write(folder / f"{i}.safetensors", {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, f"{i}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    (folder / SINGLE).unlink()
    assert_same(load(folder)[0], whole)


@pytest.mark.parametrize("axis_types", ["auto", "explicit"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_loads_onto_a_mesh(name, axis_types, tmp_path, monkeypatch):
    """The same bits, each parameter by its rule, and every byte read once."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = make_mesh("data=2,fsdp=2,tensor=2", axis_types, jax.devices()[:8])
    save(fresh(name), None, tmp_path / "model")
    expected, _ = load(tmp_path / "model", jnp.bfloat16)
    read = count_reads(monkeypatch)
    with jax.set_mesh(mesh):  # as training loads
        model, _ = load(tmp_path / "model", jnp.bfloat16, mesh)
    assert_same(model, expected)
    file = TensorFile(tmp_path / "model" / SINGLE)
    sizes = {name: 4 * math.prod(file.shape(name)) for name in file.names}
    assert sum(read) == sum(sizes.values())
    assert max(read) == max(sizes.values()) // 4
    params, _ = take_apart(model)
    lies = shardings(mesh, params)
    assert all(x.sharding == lies[path] for path, x in params.items())


def test_a_mesh_that_does_not_divide_is_told_before_anything_is_read(
    folder, monkeypatch
):
    mesh = make_mesh("fsdp=5", "auto", jax.devices()[:5])
    read = count_reads(monkeypatch)
    with pytest.raises(ValueError, match="axis fsdp of 5 does not divide dimension"):
        load(folder, mesh=mesh)
    assert not read


def test_a_host_reads_its_own_rows_and_columns(folder):
    """Two processes, each of which holds half of every row's kv heads."""
    said = reads.both(folder)
    file = TensorFile(folder / SINGLE)
    sizes = {name: 4 * math.prod(file.shape(name)) for name in file.names}
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    half = (sum(sizes.values()) - norms) // 2
    assert said == [{"bytes": half + norms, "same": True}] * 2


def test_save_does_not_overwrite(folder):
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ValueError, match="already exists"):
        save(fresh("tied"), None, folder)
    assert sorted(folder.parent.iterdir()) == before


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("jaxkv.models.folder.write_folder", fail)
    with pytest.raises(OSError, match="disk full"):
        save(fresh("llama"), None, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_large_model_is_saved_in_shards(tmp_path, monkeypatch):
    """Which transformers' names and index are, and `load` reads like one file."""
    model = fresh("llama")
    save(model, None, tmp_path / "one")
    monkeypatch.setattr(
        "jaxkv.models.folder.write_folder", partial(write_folder, most=2**14)
    )
    save(model, None, tmp_path / "several")
    names = sorted(path.name for path in (tmp_path / "several").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    one, several = (load(tmp_path / name)[0] for name in ("one", "several"))
    assert model_hash(one) == model_hash(several)
    assert stored_dtype(tmp_path / "several") == jnp.float32


def test_save_refuses_integers(tmp_path):
    with pytest.raises(ValueError, match="dtype=int8 cannot be saved"):
        save(fresh("llama"), None, tmp_path / "model", dtype=jnp.int8)


def change_config(folder: Path, **change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_tensors(folder: Path, **change) -> None:
    file = TensorFile(folder / SINGLE)
    tensors = {name: file.read(name) for name in file.names} | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write(folder / SINGLE, kept)


NORM = "model.norm.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"
SPOILED = {
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON obj"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "neither model.safetensors nor"),
    "architecture": (
        lambda f: change_config(f, architectures=["X"]),
        "not one we have",
    ),
    "width": (lambda f: change_config(f, hidden_size=32), "has shape .* asks for"),
    "layers": (lambda f: change_config(f, num_hidden_layers=3), "no file of it holds"),
    "missing": (lambda f: change_tensors(f, **{NORM: None}), "no file of it holds"),
    "shape": (
        lambda f: change_tensors(f, **{NORM: np.ones(25, np.float32)}),
        r"'model.norm.weight' has shape \(25,\) .* asks for \(24,\)",
    ),
    "dtype": (
        lambda f: change_tensors(f, **{NORM: np.ones(24, np.int8)}),
        "'model.norm.weight' is int8",
    ),
    "left over": (
        lambda f: change_tensors(f, **{BIAS: np.ones(48, np.float32)}),
        "q_proj.bias' has no place",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "generation": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "eos_token_id",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tied_model_may_store_its_head(tmp_path):
    save(fresh("tied"), None, tmp_path / "model")
    expected, _ = load(tmp_path / "model")
    head = np.zeros((40, 24), np.float32)
    change_tensors(tmp_path / "model", **{"lm_head.weight": head})
    assert_same(load(tmp_path / "model")[0], expected)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="it has no config.json"):
        load(tmp_path / "absent")
