"""`jaxkv bench` on a CPU: right before fast, and errors of one line."""

import json

import pytest

from jaxkv.bench import ops, timing
from jaxkv.cli.main import main


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """One small case, few calls."""
    monkeypatch.setattr(ops, "SMALL", (ops.Case("full", 1, 70),))
    monkeypatch.setattr(ops, "ON_CPU", 2)
    monkeypatch.setattr(timing, "RUNS", 1)


def test_times_stand_beside_their_floor(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "--op", "ragged_decode", "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["op"], row["batch"], row["slots"]) == ("ragged_decode", 1, 70)
    assert row["bytes"] == 70 * ops.K * ops.H * 2 * 2
    assert row["seconds"] > 0 and row["floor"] > 0 and row["xla"] > 0
    said = capsys.readouterr().out
    assert "x floor" in said and "of XLA" in said and "the peer" not in said


def test_no_time_where_the_result_is_wrong(monkeypatch, tmp_path, capsys):
    right = ops.ragged_decode

    def wrong(*arrays, **options):
        out, *rest = right(*arrays, **options)
        return out * 1.1, *rest

    monkeypatch.setattr(ops, "ragged_decode", wrong)
    asked = ["bench", "--op", "ragged_decode", "--out", str(tmp_path / "rows")]
    assert main(asked) == 2
    said = capsys.readouterr()
    assert "ragged_decode: out differs" in said.err and "x floor" not in said.out
    assert not list(tmp_path.iterdir())


def test_a_models_step(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    asked = "bench --model demo --context 128 --batch 1 --methods snapkv --keep 0.5"
    assert main([*asked.split(), "--dtype", "float32", "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["method"], row["keep"], row["context"]) == ("snapkv", 0.5, 128)
    assert row["step"] > 0 and row["cache_bytes"] > 0
    assert "one decode step of demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked, said",
    [
        ("--op nope", "There is no op 'nope' to time"),
        ("--keep 0", "--keep 0 is not above 0 and up to 1."),
        ("--op ragged_decode --peer", "it needs torch with CUDA"),
        ("--tune", "Only ragged_decode on Hopper has sizes to tune"),
    ],
)
def test_bad_input_is_one_line(asked, said, capsys):
    assert main(["bench", *asked.split()]) == 2
    assert said in capsys.readouterr().err
