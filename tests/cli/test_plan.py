"""`jaxkv plan`: errors of one line; with libtpu, a small plan of each kind."""

import importlib.util

import pytest

from jaxkv.cli.main import main

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    "asked, said",
    [
        ("", "Give either --train or --model"),
        ("--train demo --model demo", "Give either --train or --model"),
        ("--train demo --topology v9:2x2", "names no TPU generation"),
        ("--train demo --topology v5e:5x5", "no slice of v5e is 5x5"),
        ("--model demo --micro 2", "--micro is of --train"),
        ("--train nope", "No training run named 'nope'"),
        ("--model demo --batch 0", "are 1 at least"),
    ],
)
def test_bad_input_is_one_line(asked, said, capsys):
    assert main(["plan", *asked.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install(capsys):
    assert main(["plan", "--train", "demo", "--topology", "v5e:2x2"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'jaxkv[tpu]'" in error and error.count("\n") == 1


def test_help_has_examples(capsys):
    assert main(["plan", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "jaxkv plan --train distil_llama_3_1_8b --topology v5e:16x16" in said
