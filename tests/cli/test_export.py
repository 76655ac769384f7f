"""`jaxkv export`: each format, what it says, and what it refuses in one line."""

import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import pytest

from jaxkv.cli.main import main
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import load, save
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LatentSizes

SIZES = LatentSizes(rank=12, rope_dim=4, nope_dim=4, value_dim=8)
CONFIG = DecoderConfig(
    vocabulary=40,
    width=64,
    feed_forward=256,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=8,
)
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from jaxkv.cli.main import main
for format in ("hf", "orbax", "stablehlo"):
    asked = ["--model", sys.argv[1], "--format", format, "--out", sys.argv[2]]
    assert main(["export", *asked]) == 2
"""


@pytest.fixture
def model(tmp_path):
    save(random_decoder(CONFIG, 0, jnp.float32), None, tmp_path / "model")
    return ["export", "--model", str(tmp_path / "model"), "--out"]


def refused(capsys, arguments):
    assert main(arguments) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert not said.out
    return line


def test_deepseek(tmp_path, capsys):
    config = replace(CONFIG, attention=(SIZES, SIZES))
    latent = random_decoder(config, 0, jnp.float32)
    save(latent, None, tmp_path / "latent")
    asked = ["export", "--model", str(tmp_path / "latent"), "--out"]
    line = refused(capsys, [*asked, str(tmp_path / "hf")])
    assert "give --format deepseek" in line
    assert main([*asked, str(tmp_path / "ds"), "--format", "deepseek"]) == 0
    written, note = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "ds") in written and "both 4 for a damaged one" in note
    again, _ = load(tmp_path / "ds", jnp.bfloat16)
    assert again.config.sizes(1) == SIZES
    line = refused(capsys, [*asked, str(tmp_path / "ds"), "--format", "deepseek"])
    assert "already exists" in line


def test_deepseek_in_one_step_from_a_conversion(model, tmp_path, capsys):
    convert = ["convert", "--model", model[2], "--to", "mla", "--rope-dim", "2"]
    assert main([*convert, "--same-rank", "--out", str(tmp_path / "mla")]) == 0
    asked = ["export", "--model", str(tmp_path / "mla"), "--format", "deepseek"]
    assert main([*asked, "--out", str(tmp_path / "ds")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Written")


def test_stablehlo_and_orbax(model, tmp_path, capsys):
    orbax = [str(tmp_path / "orbax"), "--format", "orbax"]
    assert main([*model, *orbax]) == 0
    assert capsys.readouterr().out == f"Written: {orbax[0]}\n"
    sizes = ["--context", "64", "--max-new-tokens", "4", "--method", "snapkv"]
    programs = [str(tmp_path / "programs"), "--format", "stablehlo", *sizes]
    assert main([*model, *programs, "--keep", "0.5", "--batch", "2"]) == 0
    assert "runs without jaxkv" in capsys.readouterr().out
    manifest = (tmp_path / "programs" / "manifest.json").read_text()
    assert '"context": 64' in manifest and "keep=0.5" in manifest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "snapkv"], "A hf folder holds no programs, and --method"),
        (["--format", "orbax", "--batch", "2"], "give --format stablehlo"),
        (["--format", "stablehlo", "--method", "snap"], "no method 'snap'"),
        (["--format", "stablehlo", "--keep", "2"], "keep=2.0 is not a fraction"),
        (["--format", "stablehlo", "--batch", "0"], "batch=0"),
        (["--format", "stablehlo", "--context", "9000"], "context of 8192"),
        (["--format", "stablehlo", "--method", "kvzip"], "feeds as many tokens"),
        (["--format", "stablehlo", "--target", "rocm"], "invalid choice 'rocm'"),
        (["--format", "deepseek"], "attend with grouped queries"),
        (["--format", "onnx"], "invalid choice 'onnx'"),
        (["--dtype", "int8"], "invalid choice 'int8'"),
    ],
)
def test_refused(arguments, message, model, tmp_path, capsys):
    assert message in refused(capsys, [*model, str(tmp_path / "out"), *arguments])
    assert [x.name for x in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing(model, tmp_path):
    """A file may have 20 KB, which no format's weights fit in."""
    command = [sys.executable, "-c", LIMITED, model[2], str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == 3 and not run.stdout
    assert all("cannot be written there (File too large)" in line for line in lines)
    assert [x.name for x in tmp_path.iterdir()] == ["model"]
