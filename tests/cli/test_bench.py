"""`jaxkv bench` on a CPU: right before fast, and errors of one line."""

import json

import jax
import pytest

from jaxkv.bench import (
    column_scores,
    latent_decode,
    model,
    pack_pages,
    ragged_decode,
    row,
    timing,
)
from jaxkv.bench.adakv_lengths import adakv_lengths
from jaxkv.bench.ops import MEASURE
from jaxkv.cli.main import main


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """One small case, few calls."""
    small = ragged_decode.Case("full", 1, 70)
    monkeypatch.setattr(ragged_decode, "SMALL", (small,))
    of_latents = latent_decode.Case(heads=16, batch=1, slots=70)
    monkeypatch.setattr(latent_decode, "SMALL", (of_latents,))
    monkeypatch.setattr(pack_pages, "SMALL", (1, 256))
    monkeypatch.setattr(column_scores, "SMALL", 128)
    monkeypatch.setattr(row, "ON_CPU", 2)
    monkeypatch.setattr(model, "STEPS", 8)
    monkeypatch.setattr(timing, "RUNS", 1)


def test_times_stand_beside_their_floor(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "--op", "ragged_decode", "--out", str(out)]) == 0
    (found,) = map(json.loads, out.read_text().splitlines())
    assert (found["op"], found["batch"], found["slots"]) == ("ragged_decode", 1, 70)
    assert found["bytes"] == 70 * ragged_decode.K * ragged_decode.H * 2 * 2
    assert found["seconds"] > 0 and found["floor"] > 0 and found["xla"] > 0
    said = capsys.readouterr().out
    assert "x floor" in said and "of XLA" in said and "the peer" not in said


def test_no_time_where_the_result_is_wrong(monkeypatch, tmp_path, capsys):
    right = ragged_decode.ragged_decode

    def wrong(*arrays, **options):
        out, *rest = right(*arrays, **options)
        return out * 1.1, *rest

    monkeypatch.setattr(ragged_decode, "ragged_decode", wrong)
    asked = ["bench", "--op", "ragged_decode", "--out", str(tmp_path / "rows")]
    assert main(asked) == 2
    jax.clear_caches()  # the wrong one's programs
    said = capsys.readouterr()
    assert "ragged_decode: out differs" in said.err and "x floor" not in said.out
    assert not list(tmp_path.iterdir())


def test_every_op_is_timed(tmp_path):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ops = [found["op"] for found in rows]
    assert sorted(set(ops)) == sorted(MEASURE) and ops.count("column_scores") == 3
    assert all(found["seconds"] > 0 and found["xla"] > 0 for found in rows)


def test_adakvs_lengths_are_of_real_heads():
    for lengths in adakv_lengths(2, 8, 500):
        assert lengths.shape == (2, 8) and (lengths.sum(axis=1) == 4000).all()
        assert lengths.max() > 1.2 * lengths.min()


def test_a_models_step(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    asked = "bench --model demo --context 128 --batch 1 --methods snapkv --keep 0.5"
    assert main([*asked.split(), "--dtype", "float32", "--out", str(out)]) == 0
    (found,) = map(json.loads, out.read_text().splitlines())
    assert (found["method"], found["keep"], found["context"]) == ("snapkv", 0.5, 128)
    assert found["step"] > 0 and found["cache_bytes"] > 0
    assert "one decode step of demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked, said",
    [
        ("--op nope", "There is no op 'nope' to time"),
        ("--keep 0", "--keep 0 is not above 0 and up to 1."),
        ("--op ragged_decode --peer", "it needs torch with CUDA"),
        ("--op column_scores --peer", "cuDNN's causal attention, which needs a GPU"),
        ("--tune", "Only ragged_decode on Hopper has sizes to tune"),
    ],
)
def test_bad_input_is_one_line(asked, said, capsys):
    assert main(["bench", *asked.split()]) == 2
    assert said in capsys.readouterr().err
