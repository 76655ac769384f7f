"""`jaxkv train`: overrides reach the config, and bad input is one line and code 2."""

import pytest

from jaxkv.cli import train as command
from jaxkv.cli.main import main
from jaxkv.train.config import load

DEMO = "configs/train/demo.py"
DUO = "configs/train/duo_demo.py"


def test_overrides_reach_the_config():
    config = command.override(load(DEMO), ["--seed", "7", "--model.width", "128"])
    assert (config.seed, config.model.width) == (7, 128)
    assert config.stages == load(DEMO).stages


def test_a_run_of_gates_is_trained_as_one(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(command, "train_gates", lambda *a: ran.append(a) or {})
    monkeypatch.setattr(command, "run", lambda *a: pytest.fail("not a model's run"))
    assert main(["train", DUO, "--steps", "7", "--out", str(tmp_path)]) == 0
    ((config, out),) = ran
    assert (config.steps, config.model, out) == (7, "demo", tmp_path)
    assert config.recipe == load(DUO).recipe


def test_no_override_is_the_config():
    assert command.override(load(DEMO), []) == load(DEMO)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-run"],
        ["no-such-file.py"],
        [DEMO, "--no-such-field", "1"],
        [DEMO, "--seed", "red"],
        [DEMO, "--out"],
        [DUO, "--no-such-field", "1"],
        [DUO, "--model", "no-such"],
        [DUO, "--steps", "0"],
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, capsys):
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and not captured.out
    assert captured.err.startswith("jaxkv: ")


def test_help_has_an_example(capsys):
    assert main(["train", "--help"]) == 0
    assert "example: jaxkv train demo" in capsys.readouterr().out
