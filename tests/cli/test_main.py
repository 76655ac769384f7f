"""The command line: help, bad input in one line with code 2, nothing half-written."""

import subprocess
import sys

import pytest

from jaxkv.cli.main import COMMANDS, main


def refused(capsys, arguments):
    """Runs a command that must fail, and returns its one line."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert not said.out and line.startswith("jaxkv: ")
    return line


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command} " in said for command in COMMANDS) and "example:" in said


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "usage: jaxkv COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"xample: jaxkv {command}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxkv 0.")


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from jaxkv.cli.main import main; main(['--help']); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=-3).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres"], "no command 'compres'; did you mean 'compare'?"),
        (["compare", "--methods", "snap"], "no method 'snap'"),
        (["compare", "--methods", "snapkv(windo=3)"], "no parameter 'windo'"),
        (["compare", "--methods", "snapkv(window=red)"], "window='red'"),
        (["compare", "--methods", "snapkv(pool=2)"], "pool=2"),
        (["compare", "--tasks", "haystack"], "No task named 'haystack'"),
        (["compare", "--model", "no-such"], "'no-such' is no model"),
        (["compare", "--model", "."], "it has no config.json"),
        (["compare", "--keeps", "0.1"], "Unrecognized options: --keeps, 0.1; did you"),
        (["compare", "stray"], "Unrecognized options: stray"),
        (["compare", "--keep", "0"], "keep=0.0"),
        (["compare", "--keep", "-0.5"], "keep=-0.5"),
        (["compare", "--keep", "1.5"], "keep=1.5"),
        (["compare", "--keep", "red"], "--keep"),
        (["compare", "--keep"], "no keep"),
        (["compare", "--samples", "0"], "samples=0"),
        (["compare", "--samples", "some"], "--samples"),
        (["compare", "--batch", "0"], "batch=0"),
        (["compare", "--context", "0"], "context=0"),
        (["compare", "--context", "9000"], "context of 8192"),
        (["compare", "--context", "16"], "does not fit into 16"),
        (["compare", "--seed", "-1"], "seed=-1"),
        (["compare", "--question", "why"], "invalid choice 'why'"),
        (["compare", "--dtype", "int8"], "invalid choice 'int8'"),
        (["generate", "--methods", "full"], "Unrecognized options"),
        (["generate"], "Give the prompt once"),
        (["generate", "--prompt"], "--prompt"),
        (["generate", "--prompt", ""], "The prompt is empty"),
        (["generate", "--prompt", "the", "-"], "Give the prompt once"),
        (["generate", "--prompt", "the", "--method", "snap"], "no method 'snap'"),
        (["generate", "--prompt", "the", "--keep", "0"], "keep=0.0"),
        (["generate", "--prompt", "the", "--model", "no-such"], "is no model"),
        (["generate", "--prompt", "the", "--temperature", "-1"], "temperature=-1.0"),
        (["generate", "--prompt", "the", "--top-k", "-1"], "top_k=-1"),
        (["generate", "--prompt", "the", "--top-p", "0"], "top_p=0.0"),
        (["generate", "--prompt", "the", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["generate", "--prompt-file", "no-such"], "no-such"),
        (["methods", "--all"], "Unrecognized options: --all"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, arguments)
    assert not list(tmp_path.iterdir())
