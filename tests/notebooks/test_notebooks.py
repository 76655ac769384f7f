"""The notebooks run from top to bottom on a CPU, and say what their text says."""

import base64
import json
import re

import pytest

from tests.notebooks.anew import NOTEBOOKS, codes, run_anew, text

MOST = 1_000_000  # bytes, with outputs


def _pictures(cell):
    data = [output.get("data", {}) for output in cell["outputs"]]
    return [base64.b64decode(d["image/png"]) for d in data if "image/png" in d]


def _scores(printed):
    """The score of each line of a printed table, by method."""
    found = re.findall(r"^ (\w+) +[\d.]+ .*?([\d.]+) ±", printed, re.M)
    return {method: float(score) for method, score in found}


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """01_compare, run anew in a process of its own."""
    return run_anew("01_compare", tmp_path_factory.mktemp("notebook"))


def test_the_device_is_printed(compare):
    assert re.match(r"jax \d.* on cpu - cpu", text(compare[0]))


def test_snapkv_needs_to_know_the_question(compare):
    aware, agnostic = map(_scores, text(compare[1]).split("question agnostic"))
    names = ["full", "snapkv", "streaming_llm", "random"]
    assert list(aware) == list(agnostic) == names
    assert aware["full"] == agnostic["full"] == 1
    assert aware["snapkv"] > agnostic["snapkv"]


def test_own_method_takes_part(compare):
    (own,) = [text(cell) for cell in compare if "value_norm" in text(cell)]
    assert list(_scores(own)) == ["full", "random", "value_norm"]


def test_pictures_are_shown(compare):
    pictures = [picture for cell in compare for picture in _pictures(cell)]
    assert len(pictures) == 3
    assert all(p.startswith(b"\x89PNG") and len(p) > 5000 for p in pictures)


def test_two_minutes_bring_latents_back(tmp_path):
    """02_convert_and_distil: a conversion answers less before it is distilled."""
    cells = run_anew("02_convert_and_distil", tmp_path)
    said = "".join(map(text, cells))
    found = re.findall(r"^(\S.*?) +(\d+) KiB +score ([\d.]+)$", said, re.M)
    score = {name: float(score) for name, _, score in found}
    kib = {name: int(size) for name, size, _ in found}
    assert score["demo"] == 1 and score["bases, 75%"] >= 0.9
    assert score["distilled"] > score["converted"] + 0.1
    assert kib["distilled"] == kib["converted"] < kib["demo"] / 2
    assert "model.safetensors" in said and "Refused: The model's layers" in said
    assert any(_pictures(cell) for cell in cells)


@pytest.mark.parametrize(
    "path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem
)
def test_stored_outputs_are_whole_and_small(path):
    notebook = json.loads(path.read_text())
    counts = [cell["execution_count"] for cell in codes(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < MOST
    assert notebook["nbformat"] == 4
