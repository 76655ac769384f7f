"""Small plans of `jaxkv plan`, compiled for a TPU slice; libtpu and no TPU is needed.

The bytes of all kinds are those of the compiled program's memory analysis, argument by
argument: what XLA asks for beyond the arrays in their tiles is at most alignment.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxkv.models.config import DecoderConfig
from jaxkv.models.families import write_config
from jaxkv.models.sizes import LatentSizes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu to compile for TPUs: pip install -e '.[test,tpu]'",
)
RUN = """
from jaxkv.models.config import DecoderConfig
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import Divergence, HiddenStates
from jaxkv.train.recipe import Recipe

TRAIN = Train(
    model=DecoderConfig(
        width=256, feed_forward=512, layers=4, query_heads=4, kv_heads=2, head_dim=128
    ),
    stages=(Stage(50, Documents(((8, 256),), Recipe(gaps=0.0))),),
    objectives=(Divergence(), HiddenStates()),
    teacher="itself",
    remat="full",
    mesh="fsdp=2,tensor=2",
)
"""


def planned(folder, *asked):
    """plan.json of a command, in a process of its own: libtpu is one process's."""
    out = folder / "plan.json"
    root = str(Path(__file__).parents[1])
    left_out = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    code = "import sys; from jaxkv.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *asked, "--out", str(out)],
        cwd=root,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


def test_a_training_step(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    run = str(tmp_path / "run.py")
    plan, said = planned(tmp_path, "--train", run, "--topology", "v5e:2x2")
    step = plan["step"]
    assert abs(step["bytes"].get("alignment", 0)) <= 4096
    assert sum(step["bytes"].values()) == plan["bytes"] > 0
    assert step["xla_seconds"] > 0 and step["kernel_flops"] > 0
    assert plan["seconds"] >= step["xla_seconds"]
    assert {"fsdp", "tensor"} <= {one["axes"] for one in step["collectives"]}
    assert plan["days"] * 86400 == pytest.approx(50 * plan["seconds"])
    assert "gradients and temporaries" in said and "tokens/s" in said


def test_prefill_and_a_decode_step(tmp_path):
    asked = "--model demo --context 1024 --batch 2 --topology v5e:2x2 --mesh"
    plan, said = planned(tmp_path, *asked.split(), "data=2,tensor=2")
    decode = plan["decode"]
    assert abs(decode["bytes"].get("alignment", 0)) <= 4096
    assert decode["kernel_flops"] > 0 and decode["xla_seconds"] > 0
    assert plan["groups"] == 2 and "sum in each group" in said
    assert 0 < decode["bytes"]["cache"] < decode["bytes"]["parameters"] * 4


def test_latents_lie_on_every_chip_of_the_tensor_axis(tmp_path):
    """And each reads them for its own query heads."""
    sizes = LatentSizes(rank=192, rope_dim=64, nope_dim=64, value_dim=128)
    config = DecoderConfig(layers=2, query_heads=64, attention=(sizes,) * 2)
    (tmp_path / "config.json").write_text(json.dumps(write_config(config, "bfloat16")))
    asked = "--context 1024 --batch 2 --method snapkv --topology v5e:2x2 --mesh".split()
    found = []
    for mesh in ("data=2,tensor=2", "tensor=4"):
        plan, _ = planned(tmp_path, "--model", str(tmp_path), *asked, mesh)
        assert plan["groups"] == 1
        found.append(plan["decode"])
    one, two = found  # sequences a chip; of the heads a half and a quarter
    assert two["kernel_flops"] == one["kernel_flops"] > 0
    assert two["bytes"]["cache"] == pytest.approx(2 * one["bytes"]["cache"], rel=0.01)


def test_fsdp_gathers_one_layer_at_a_time(tmp_path):
    """Also in a decode step, whose layers XLA would else gather all at once."""
    config = DecoderConfig(
        vocabulary=1024, width=512, feed_forward=4096, layers=6, head_dim=128
    )
    (tmp_path / "config.json").write_text(json.dumps(write_config(config, "bfloat16")))
    asked = "--context 512 --batch 4 --topology v5e:2x2 --mesh fsdp=4".split()
    plan, _ = planned(tmp_path, "--model", str(tmp_path), *asked)
    layer = 2 * 512 * (3 * 4096 + (2 * 8 + 2 * 4) * 128)
    assert plan["decode"]["bytes"]["gradients and temporaries"] < 2 * layer
