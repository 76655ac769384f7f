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


def test_overrides_reach_what_a_config_is_made_of():
    options = ["--stages.0.steps", "7", "--optimizer.rate.peak", "0.1", "--steps", "5"]
    options += ["--mesh", "data=2,fsdp=4", "--objectives.1.weight", "0.2"]
    config = command.override(load(DUO), options)
    assert (config.total, config.optimizer.rate.peak) == (5, 0.1)
    assert config.objectives[1].weight == 0.2 and config.mesh == "data=2,fsdp=4"
    assert config.stages[0].feed == load(DUO).stages[0].feed
    assert config.add_on == load(DUO).add_on


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
        [DUO, "--mesh", "data=3"],
        [DUO, "--mesh", "model=8"],
        [DUO, "--trainable", "no.such.*"],
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
