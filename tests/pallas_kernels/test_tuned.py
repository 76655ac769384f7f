"""The table of tuned sizes: what is there is taken, and no more."""

import json

import jax

from jaxkv.bench.tune import write
from pallas_kernels import tuned
from pallas_kernels.ragged_decode.mosaic_gpu import Sizes


def test_every_entry_makes_sizes():
    for ops in tuned.table().values():
        for sizes in ops["ragged_decode"].values():
            assert Sizes(**sizes).stages >= 2


def test_a_device_without_an_entry_takes_what_is_given():
    assert tuned.tuned("ragged_decode", 128, Sizes, stages=7) == Sizes(stages=7)


def test_what_is_written_is_taken(tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    write({"128": {"blocks": 9, "stages": 4}}, "ragged_decode", file)
    made = json.loads(file.read_text())
    assert made["NVIDIA H200"] == tuned.table()["NVIDIA H200"]
    assert set(made) == {"NVIDIA H200", jax.devices()[0].device_kind}
    monkeypatch.setattr(tuned, "table", lambda: made)
    found = tuned.tuned("ragged_decode", 128, Sizes, stages=7)
    assert found == Sizes(blocks=9, stages=4)
    assert list(tmp_path.iterdir()) == [file]
