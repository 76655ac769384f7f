"""`jaxkv calibrate`: keeps what was measured, and refuses what it cannot measure."""

import sys

import jax
import pytest
from flax import nnx

import jaxkv
from jaxkv.budget.uniform import Uniform
from jaxkv.calibrate import store
from jaxkv.cli.main import main
from jaxkv.method import Method
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.score.key_norm import KeyNorm
from jaxkv.score.query_filter import QueryFilter
from jaxkv.select.top_k import TopK
from jaxkv.train.tokenizer import word_tokenizer

SIZES = dict(width=16, feed_forward=16, layers=1, query_heads=2, kv_heads=1, head_dim=8)


class Classes(Uniform):
    """A budget that reads head classes, whatever it does with them."""

    calibration = "head_classes"


class Gated(Uniform):
    """A budget that reads gates."""

    calibration = "gates"


ROWS = {
    "filtered": Method(QueryFilter(), Uniform(), TopK()),
    "classed": Method(KeyNorm(), Classes(), TopK()),
    "gated": Method(KeyNorm(), Gated(), TopK()),
    "plain": Method(KeyNorm(), Uniform(), TopK()),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXKV_CALIBRATION", raising=False)
    rows = sys.modules["jaxkv.method"]  # as an attribute it is the function
    plain = rows.method
    monkeypatch.setattr(
        rows, "method", lambda name: ROWS[name] if name in ROWS else plain(name)
    )
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """The folder of a small model of the language."""
    path = tmp_path_factory.mktemp("model") / "model"
    model = Decoder(DecoderConfig(**SIZES, max_position=64), rngs=nnx.Rngs(0))
    folder.save(model, word_tokenizer(), path)
    return str(path)


def test_it_is_kept_where_it_is_found(place, tmp_path, capsys):
    assert main(["calibrate", "--model", place, "--method", "classed"]) == 0
    model, _ = jaxkv.load(place)
    file = tmp_path / "cache/jaxkv/calibration" / store.file_name(model, "head_classes")
    assert capsys.readouterr().out == f"Written: {file}\n"
    assert set(store.calibration(model, "head_classes")) == {"echo", "induction"}


def test_filters_from_a_text(place, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("the calm fox sends axe map jar bee . " * 20)
    out = tmp_path / "a.safetensors"
    arguments = ["--model", place, "--method", "filtered", "--text", str(text)]
    assert main(["calibrate", *arguments, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    model, _ = jaxkv.load(place)
    assert store.load(out, model, "query_filters")["filter"].shape == (1, 1, 8)
    assert not (tmp_path / "cache/jaxkv/calibration").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--method"),
        (["--method", "snap"], "no method 'snap'"),
        (["--method", "plain"], "'plain' reads no calibration"),
        (["--method", "gated"], "take training; run jaxkv train duo_demo"),
        (["--method", "classed", "--text", "x"], "without text; leave out --text"),
        (["--method", "filtered", "--text", "no-such"], "no-such"),
        (["--method", "filtered", "--text", "empty"], "The text is empty"),
        (["--method", "filtered", "--text", "binary"], "binary: 'utf-8'"),
        (["--method", "filtered", "--out", "empty"], "--out empty is a file"),
        (["--method", "filtered", "--model", "no-such"], "'no-such' is no model"),
        (["--method", "filtered", "--model", "bare"], "tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments, message, place, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    if "bare" in arguments:
        model, _ = jaxkv.load(place)
        folder.save(model, None, tmp_path / "bare")
    if "--model" not in arguments:
        arguments = [*arguments, "--model", place]
    assert main(["calibrate", *arguments]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert message in line and line.startswith("jaxkv: ") and not said.out
