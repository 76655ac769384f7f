"""`jaxkv generate`: the same text from three sources, streamed in pieces."""

import io

import jax
import pytest
from flax import nnx

from jaxkv.cli.generate import pieces
from jaxkv.cli.main import main
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.train.tokenizer import word_tokenizer

TEXT = (
    "the calm fox sends axe map jar bee . the bold hare owns owl ink . recall the calm"
)
ROWS = ["--max-new-tokens", "9", "--method", "snapkv(window=4)", "--keep", "0.9"]


@pytest.fixture(autouse=True)
def _programs_elsewhere(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_three_ways_to_give_the_prompt(tmp_path, capsys, monkeypatch):
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT)
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    said = []
    for source in (["--prompt", TEXT], ["--prompt-file", str(path)], ["-"]):
        assert main(["generate", *source, *ROWS]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1 and len(said[0].split()) == 9


def test_a_mesh_says_the_same(tmp_path, capsys):
    """On every axis; and one that does not fit is one line."""
    if jax.device_count() != 8:
        pytest.skip("needs eight devices")
    said = []
    config = DecoderConfig(width=16, feed_forward=16, layers=1, kv_heads=2, head_dim=8)
    model = Decoder(config, rngs=nnx.Rngs(0))
    folder.save(model, word_tokenizer(), tmp_path / "model")
    asked = ["generate", "--prompt", TEXT, *ROWS, "--model", str(tmp_path / "model")]
    for mesh in ([], ["--mesh", "data=2,fsdp=2,tensor=2"]):
        assert main([*asked, *mesh]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1
    for mesh, why in (("data=3", "there are 8; give axes"), ("tensor=8", "kv heads")):
        assert main([*asked, "--mesh", mesh]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line


def test_pieces_join_to_the_text():
    tokenizer = word_tokenizer()
    ids = tokenizer.encode("the calm fox sends", add_special_tokens=False).ids
    chunks = iter([ids[:1], [], ids[1:3], ids[3:]])
    assert list(pieces(tokenizer, chunks)) == ["the", "", " calm fox", " sends"]


def test_a_broken_character_waits_for_its_rest():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    two = "é".encode()
    chunks = iter([[97, two[0]], [two[1]], [98]])
    assert list(pieces(Bytes(), chunks)) == ["a", "é", "b"]


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\xff"])
def test_a_file_without_a_prompt_is_refused(content, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert main(["generate", "--prompt-file", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_prompt_beyond_the_model_is_refused(capsys):
    assert main(["generate", "--prompt", "the " * 9000]) == 2
    assert "the model takes 8192" in capsys.readouterr().err
