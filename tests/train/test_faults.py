"""Each fault of a run ends `jaxkv train` with one line that says what to do.

A missing data file and a malformed line are tried in tests/train/data, a process that
dies in test_hosts.py.
"""

import json
import shutil
import signal
import time

import pytest

from jaxkv.cli.main import main
from tests.train import launch, logged


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of ten steps, with checkpoints of 5 and 10, that is to be gone on with."""
    folder = tmp_path_factory.mktemp("whole")
    logged.write_tokens(folder / "tokens.bin", 400)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _names(folder).items():
            patch.setenv(name, str(value))
        assert main(_command(folder, steps=20, minutes=0)) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    # By the same path, so that the config is the same.
    for name, value in (_names(whole) | {logged.LOG: tmp_path / "log"}).items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def _names(folder):
    return {
        logged.TOKENS: folder / "tokens.bin",
        logged.LOG: folder / "log",
        "JAXKV_TOKENS": folder / "kept",
    }


def _command(folder, **fields):
    flags = [w for name, x in fields.items() for w in (f"--{name}", str(x))]
    return ["train", launch.RUN, "--out", str(folder / "out"), *flags]


def _ends(capsys, code, arguments):
    """The line that the command ends with."""
    capsys.readouterr()
    assert main(arguments) == code
    said = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(said)
    (line,) = [one for one in said if one.startswith("jaxkv: ")]
    return line


def _newest(run):
    return max((run / "out" / "checkpoints").iterdir(), key=lambda path: int(path.name))


def _arrays(checkpoint):
    files = [file for file in checkpoint.rglob("d/*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def test_the_run_goes_on(run, capsys):
    assert _newest(run).name == "10"
    assert main(_command(run, steps=20, minutes=0)) == 0
    assert _newest(run).name == "20"


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_checkpoint(how, run, capsys):
    file = _arrays(_newest(run))
    found = file.read_bytes()
    half = len(found) // 2
    flipped = found[:half] + bytes([found[half] ^ 1]) + found[half + 1 :]
    file.write_bytes(found[:half] if how == "truncated" else flipped)
    line = _ends(capsys, 0, _command(run, steps=20, minutes=0))
    assert file.name in line and "damaged" in line and "going on from step 5" in line
    assert (run / "out" / "checkpoints" / "damaged-10").is_dir()


def test_no_whole_checkpoint(run, capsys):
    for checkpoint in (run / "out" / "checkpoints").iterdir():
        _arrays(checkpoint).unlink()
    line = _ends(capsys, 2, _command(run, steps=20))
    assert "put back a copy of that file, or begin a new run" in line


def test_run_of_another_model(run, capsys):
    line = _ends(capsys, 2, [*_command(run, steps=20), "--model.width", "64"])
    assert "another model; choose another folder" in line


def test_checkpoint_of_another_model(run, capsys):
    """Put into the folder of a new run."""
    (run / "out" / "train.json").unlink()
    line = _ends(capsys, 2, [*_command(run, steps=20), "--model.width", "64"])
    assert "another model; choose another folder" in line


def test_data_changed_between_runs(run, whole, capsys):
    tokens = whole / "tokens.bin"
    before = tokens.read_bytes()
    tokens.write_bytes(before[:-2] + b"\1\0")
    try:
        line = _ends(capsys, 2, _command(run, steps=20))
    finally:
        tokens.write_bytes(before)
    assert f"{tokens}: its content changed since" in line
    assert "put the data back as they were, or begin a new run" in line
    assert _newest(run).name == "10"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "asks for 3 devices (data 3) and there are 8; give axes whose"),
        ("tensor=8", "does not divide"),
    ],
)
def test_mesh_that_does_not_fit(mesh, message, run, capsys):
    line = _ends(capsys, 2, _command(run, steps=20, mesh=mesh))
    assert message in line and "give" in line


def test_loss_that_is_no_number(run, capsys):
    fields = {"steps": 20, "optimizer.rate.peak": "1e38"}
    shutil.rmtree(run / "out")
    line = _ends(capsys, 2, _command(run, **fields))
    assert "of step" in line and "Lower the learning rate" in line


def test_disk_full(run):
    """A file may have 20 KB: less than the arrays, more than the log."""
    limit = (
        "import resource as r, signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); "
        "r.setrlimit(r.RLIMIT_FSIZE, (20_000, 20_000)); "
    )
    code, said = launch.run(*_command(run, steps=20), first=limit)
    assert code == 1, said
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("jaxkv: Saving step 15 to ") and "failed (" in line
    assert "run the same command again: it goes on from step 10" in line
    assert main(_command(run, steps=20)) == 0


def test_sigterm_saves_and_the_same_command_goes_on(run):
    (run / "log").unlink()
    command = _command(run, steps=100, save_every=1000)
    command[command.index("--out") + 1] = str(run / "other")
    process = launch.start(*command)
    while process.poll() is None and not (run / "log").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    (saved,) = (run / "other" / "checkpoints").iterdir()
    line = said.splitlines()[-1]
    assert f"SIGTERM came, and step {saved.name} of 100 is saved; run the same" in line
    code = main(command)
    steps = [json.loads(one)["step"] for one in (run / "log").read_text().splitlines()]
    # What was given to the steps before the save is not taken again.
    assert code == 0 and sorted(steps) == steps and steps[-1] == 99
