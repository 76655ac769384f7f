"""Exported programs generate what jaxkv does, where there is no jaxkv."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkv
from jaxkv.convert.x_ecomla import XEcoMLA
from jaxkv.export.formats import export
from jaxkv.export.stablehlo import Programs, write_stablehlo
from jaxkv.method import method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import random_decoder
from tests.tiny import CONFIG, tiny_model, tiny_prompts

NEW = 6
ALONE = """
import json, runpy, sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jaxkv", "pallas_kernels", "flax", "orbax", "optax"}:
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
folders, prompts = json.load(sys.stdin)
said = []
for folder in folders:
    run = runpy.run_path(f"{folder}/run.py")
    said.append(run["generate"](run["HERE"], prompts))
print(json.dumps(said))
"""


def program(folder, name):
    return jax.export.deserialize(bytearray((folder / f"{name}.bin").read_bytes()))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def runner(folder):
    """The folder's own run.py."""
    spec = importlib.util.spec_from_file_location("run_exported", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_program_without_jaxkv_says_the_same(tmp_path):
    """The demo, an MLA conversion of it, and one of another; full and compressed."""
    demo, _ = jaxkv.load("demo")
    snapkv = method("snapkv", keep=0.25)
    cases = (
        (demo, snapkv),
        (XEcoMLA(rank=64, rope_dim=16)(demo), method("full")),
        (XEcoMLA(rank=16, rope_dim=4)(tiny_model()), snapkv),
    )
    prompts, folders, said = tiny_prompts((200, 40)), [], []
    for i, (model, row) in enumerate(cases):
        folders.append(str(tmp_path / f"{i}"))
        sizes = Programs(row, batch=3, context=200, max_new_tokens=NEW)
        export(model, None, folders[-1], format="stablehlo", programs=sizes)
        said.append(jaxkv.generate(model, prompts, method=row, max_new_tokens=NEW))
        assert manifest(tmp_path / f"{i}")["platforms"] == ["cpu", "cuda", "tpu"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        input=json.dumps([folders, prompts]),
        capture_output=True,
        text=True,
        env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == said
    assert len({str(answers) for answers in said}) == len(cases)


@pytest.mark.parametrize("name", ["random", "h2o", "razorattention"])
def test_rows_of_every_kind(name, tmp_path):
    """Drawn at random; evicting at every step; calibrated, by heads, and merging."""
    row, prompts = method(name, keep=0.3), tiny_prompts((40, 97, 3))
    sizes = Programs(row, batch=3, context=97, max_new_tokens=NEW)
    write_stablehlo(tiny_model(), None, tmp_path / "out", programs=sizes)
    found = runner(tmp_path / "out").generate(tmp_path / "out", prompts)
    said = jaxkv.generate(tiny_model(), prompts, method=row, max_new_tokens=NEW)
    assert found == said


def test_the_manifest_is_what_the_programs_take(tmp_path):
    model = random_decoder(replace(CONFIG, stop_tokens=(3, 5)), 0, jnp.float32)
    sizes = Programs(method("snapkv", keep=0.5), 2, 64, 8)
    write_stablehlo(model, None, tmp_path / "out", "bfloat16", sizes)
    about = manifest(tmp_path / "out")
    assert about["stop_tokens"] == [3, 5] and about["batch"] == 2
    for name in ("prefill", "decode"):
        made, said = program(tmp_path / "out", name), about["programs"][name]
        assert list(made.platforms) == about["platforms"]
        version = about["calling_convention_version"]
        assert made.calling_convention_version == version
        assert made.module_kept_var_idx == tuple(range(len(made.in_avals)))
        for avals, listed in ((made.in_avals, "inputs"), (made.out_avals, "outputs")):
            shapes = [(list(x.shape), x.dtype.name) for x in avals]
            assert shapes == [(x["shape"], x["dtype"]) for x in said[listed]]
        names = [x.get("name") for x in said["inputs"]]
        trees, _ = jax.tree.unflatten(made.in_tree, names)
        given = [tree for tree in trees if isinstance(tree, dict)]
        assert all(name == key for tree in given for key, name in tree.items())
    # What decode gives of the cache is what it takes, and may lie where that lay.
    inputs, outputs = (about["programs"]["decode"][x] for x in ("inputs", "outputs"))
    cache = [x for x in inputs if x["argument"] == "cache"]
    assert cache == outputs[1:] and about["programs"]["decode"]["donated"] == ["cache"]
    text = program(tmp_path / "out", "decode").mlir_module()
    assert text.count("tf.aliasing_output") == len(cache)
    entries = [x for x in cache if ".entry." in x["name"]]
    assert entries and all(x["dtype"] == "bfloat16" for x in entries)


def test_a_row_ends_and_the_others_go_on(tmp_path):
    """After a stop token nothing is added to its cache."""
    prompts, row = tiny_prompts((40, 64)), method("full")
    free = jaxkv.generate(tiny_model(), prompts, method=row, max_new_tokens=NEW)
    stop = free[0][-1]
    assert stop not in free[1]
    model = Decoder(replace(CONFIG, stop_tokens=(stop,)), rngs=nnx.Rngs(0))
    sizes = Programs(row, batch=2, context=64, max_new_tokens=NEW)
    write_stablehlo(model, None, tmp_path / "out", programs=sizes)
    run = runner(tmp_path / "out")
    found = run.generate(tmp_path / "out", prompts)
    assert found == [free[0][: free[0].index(stop)], free[1]]
    for wrong in ([], [[]], prompts * 2, [[1] * 65]):
        with pytest.raises(SystemExit, match="rompts"):
            run.generate(tmp_path / "out", wrong)


def test_the_caller_donates_and_the_cache_stays_where_it_is(tmp_path):
    sizes = Programs(context=64, max_new_tokens=8)
    write_stablehlo(tiny_model(), None, tmp_path / "out", programs=sizes)
    made = program(tmp_path / "out", "decode")
    (parameters, cache, *tokens), _ = jax.tree.unflatten(made.in_tree, made.in_avals)
    donating = jax.jit(made.call, donate_argnums=1).lower(parameters, cache, *tokens)
    held = sum(np.dtype(x.dtype).itemsize * x.size for x in cache.values())
    memory = donating.compile().memory_analysis()
    assert memory.alias_size_in_bytes == held


def test_kernels_for_a_tpu(tmp_path):
    """By name, on a machine that has none."""
    config = DecoderConfig(width=64, feed_forward=64, layers=1, head_dim=64)
    model = random_decoder(config, 0, jnp.bfloat16)
    sizes = Programs(method("snapkv", keep=0.5), 1, 512, 8, target="tpu")
    write_stablehlo(model, None, tmp_path / "out", programs=sizes)
    made = program(tmp_path / "out", "decode")
    assert made.platforms == ("tpu",) and "tpu_custom_call" in made.mlir_module()
    assert "tpu_custom_call" in program(tmp_path / "out", "prefill").mlir_module()


REFUSED = {
    "feeds": ({"method": method("kvzip")}, "RepeatedAttention feeds as many tokens"),
    "batch": ({"batch": 0}, "batch=0; give 1 at least"),
    "context": ({"context": 0}, "context=0; give 1 at least"),
    "new": ({"max_new_tokens": 0}, "max_new_tokens=0; give 1 at least"),
    "longest": ({"context": 2000}, "pass the model's context of 2048"),
    "target": ({"target": "rocm"}, "target='rocm' is not one of any, cpu, gpu"),
    "no gpu": ({"target": "sm90"}, "this one has none; give any"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        sizes = Programs(**{"context": 64, **options})
        write_stablehlo(tiny_model(), None, tmp_path / "out", programs=sizes)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
