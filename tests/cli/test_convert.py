"""`jaxkv convert`: each way's own options, its text, and one line for bad input."""

import jax
import numpy as np
import pytest

from jaxkv.cli.main import main
from jaxkv.convert.ways import WAYS
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.load import dtype_of, load
from jaxkv.models.presets import random_decoder
from jaxkv.train.tokenizer import word_tokenizer
from tests.cli.test_main import refused

SIZES = dict(width=16, feed_forward=16, layers=2, query_heads=4, kv_heads=2, head_dim=8)
TEXT = "the calm fox sends axe map jar bee . let red hen be cup . " * 10


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """The folder of a small model of the language."""
    path = tmp_path_factory.mktemp("model") / "model"
    config = DecoderConfig(**SIZES, max_position=256)
    folder.save(random_decoder(config, 0, "float32"), word_tokenizer(), path)
    return str(path)


@pytest.mark.parametrize(
    ("way", "options", "said"),
    [
        ("mla", ["--rank", "8"], "128 bytes in bfloat16, now 48 (2.7 times fewer)"),
        ("transmla", [], "now 48 (2.7 times fewer); ranks 8, 8"),
        ("transmla", ["--fold", "2", "--no-norm"], "ranks 8, 8"),
        ("transmla", ["--text", "a.txt", "b.txt"], "ranks 8, 8"),
        ("transmla", ["--text", "a.txt", "--rows", "1"], "ranks 8, 8"),
        ("gqa", [], "now 64 (2.0 times fewer); kv heads 1"),
        ("mqa", [], "now 64 (2.0 times fewer); kv heads 1"),
        ("matryoshka", ["--keep-bytes", "0.5", "--no-search"], "ranks 4 + 4, 4 + 4"),
        ("eigen", ["--key-rank", "3", "--value-rank", "5"], "ranks 3 + 5, 3 + 5"),
    ],
)
def test_what_is_written_is_of_the_way(
    way, options, said, place, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    asked = ["convert", "--model", place, "--to", way, "--out", "out", *options]
    assert main(asked) == 0
    assert said in capsys.readouterr().out
    model, tokenizer = folder.load(tmp_path / "out")
    assert tokenizer is not None
    latents = [model.config.sizes(i) for i in range(2)]
    if way in ("gqa", "mqa"):
        assert model.config.architecture == "LlamaForCausalLM" and not any(latents)
    elif way in ("matryoshka", "eigen"):
        assert [s.entry for s in latents] == [8, 8]
        assert all(s.after_rope == (way == "matryoshka") for s in latents)
    else:
        assert [s.rank for s in latents] == [8, 8]
        assert all(s.norm == ("--no-norm" not in options) for s in latents)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_written_as_it_was_stored(way, place, tmp_path):
    """Unless another dtype is asked for; it is computed with in fp32 all the same."""
    model, tokenizer = folder.load(place, "bfloat16")
    folder.save(model, tokenizer, tmp_path / "low")
    for out, options in (("same", []), ("float32", ["--dtype", "float32"])):
        asked = ["convert", "--model", str(tmp_path / "low"), "--to", way, *options]
        assert main([*asked, "--out", str(tmp_path / out)]) == 0
    dtypes = [dtype_of(tmp_path / out).name for out in ("same", "float32")]
    assert dtypes == ["bfloat16", "float32"]
    same, other = (load(tmp_path / out)[0] for out in ("same", "float32"))
    assert same.config == other.config
    pairs = zip(jax.tree.leaves(same), jax.tree.leaves(other), strict=True)
    for low, high in pairs:
        rounding = 2**-8 * np.abs(high) + 1e-6
        assert (np.abs(low - high) <= rounding).all()


@pytest.mark.parametrize("way", WAYS)
def test_help_is_of_the_way(way, capsys):
    assert main(["convert", "--to", way, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Example: jaxkv convert" in said and "--out" in said
    for other, option in {
        "mla": "--energy",
        "transmla": "--fold",
        "gqa": "--kv-heads",
        "matryoshka": "--probes",
        "eigen": "--average",
    }.items():
        assert (option in said) == (other == way)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--to", "gqa", "--rank", "8"],
            "--to gqa has no option --rank; it has --kv-h",
        ),
        (
            ["--to=mqa", "--kv-heads=1"],
            "--to mqa has no option --kv-heads; it has none",
        ),
        (
            ["--energy", "0.5", "--to", "transmla"],
            "no option --energy; it has --rank --",
        ),
        (["--to", "gqa", "--no-norm"], "--to gqa has no option --norm"),
        (["--text", "a.txt"], "--to mla has no option --text"),
        (["--rows", "3"], "--to mla has no option --rows"),
        (["--to", "eigen", "--rows", "0"], "--rows 0; give one at least"),
        (["--to", "mla", "--ranks", "3"], "Unrecognized options: --ranks, 3; did you"),
        (["--to", "kron"], "invalid choice 'kron'"),
        (["--to"], "--to"),
        (["--to", "transmla", "--text", "no-such"], "no-such"),
        (["--to", "transmla", "--text", "empty"], "The text is empty"),
        (["--to", "transmla", "--text", "short"], "tokens are too few"),
        (["--to", "transmla", "--model", "bare"], "no tokenizer to read calibration"),
        (["--to", "transmla", "--rank", "99"], "is to be 99"),
        (["--to", "gqa", "--kv-heads", "3"], "kv_heads=3"),
        (["--to", "matryoshka", "--keep-bytes", "2"], "is no share"),
        (["--to", "eigen", "--key-rank", "9", "--value-rank", "1"], "is to be 9"),
        (["--to", "eigen", "--text", "short"], "tokens are too few"),
        (["--to", "mqa", "--model", "no-such"], "is no model"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments, message, place, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "short").write_text("the calm fox")
    if "bare" in arguments:
        folder.save(folder.load(place)[0], None, tmp_path / "bare")
    if "--model" not in arguments:
        arguments = ["--model", place, *arguments]
    assert message in refused(capsys, ["convert", "--out", "out", *arguments])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(place, capsys):
    said = refused(capsys, ["convert", "--model", place, "--out", place])
    assert "already exists" in said
