"""`jaxkv compare`: a table on stdout, a folder, and nothing where it fails."""

import json

import jax
import pytest
from flax import nnx

from jaxkv.cli.main import main
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.train.tokenizer import word_tokenizer

SMALL = ["--context", "128", "--samples", "1", "--tasks", "single_needle"]


@pytest.fixture(autouse=True)
def _programs_elsewhere(tmp_path, monkeypatch):
    """The command keeps programs on disk; tests leave JAX as it was."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compare_prints_and_writes(tmp_path, capsys):
    config = DecoderConfig(width=16, feed_forward=16, layers=1, head_dim=8)
    folder.save(Decoder(config, rngs=nnx.Rngs(0)), word_tokenizer(), "model")
    arguments = [
        *SMALL,
        "--model",
        "model",
        "--methods",
        "full",
        "snapkv(window=8)",
        "--keep",
        "0.2",
    ]
    assert main(["compare", *arguments, "--out", "there", "--question", "aware"]) == 0
    said = capsys.readouterr()
    assert "question aware, n = 2" in said.out and "snapkv(window=8)" in said.out
    data = json.loads((tmp_path / "there" / "compare.json").read_text())
    assert data["model"] == "model"
    assert data["command"].startswith("jaxkv compare --context 128")
    assert "'snapkv(window=8)'" in data["command"]
    assert [row["method"] for row in data["rows"]] == ["full", "snapkv(window=8)"]
    kept = str(tmp_path / "cache" / "jaxkv" / "xla")
    assert jax.config.jax_compilation_cache_dir == kept


def test_out_that_is_a_file_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["compare", *SMALL, "--out", "taken"]) == 2
    assert "--out taken is a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_out_that_cannot_be_written_to_is_refused_at_once(tmp_path, capsys):
    assert main(["compare", *SMALL, "--out", f"new/{'x' * 300}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it cannot be written to" in line
    assert not (tmp_path / "new").exists()


def test_a_bad_line_of_a_data_file_is_named(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"context": "the"}\n')
    assert main(["compare", "--data", "mine.jsonl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.jsonl, line 1: it has no 'question'" in line
    assert not (tmp_path / "jaxkv-compare").exists()


def test_a_folder_of_an_unknown_architecture_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"architectures": ["Mamba"]}')
    assert main(["compare", *SMALL, "--model", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'Mamba' is not one we have" in line
    assert not (tmp_path / "jaxkv-compare").exists()
