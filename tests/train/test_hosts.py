"""Processes join, train, save and resume together, and none outlives another."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxkv.cli.main import main
from jaxkv.train import hosts
from jaxkv.train.checksums import is_sealed
from tests.train import logged, pair

ALONE = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST")


@pytest.mark.parametrize(
    ("environment", "starter"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, "SLURM"),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a notebook in a cluster
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},
            "Kubernetes",
        ),
    ],
)
def test_starter_is_known_by_its_environment(environment, starter, monkeypatch):
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.starter() == starter


@pytest.mark.parametrize(
    ("hosts_", "starter"),
    [("10.0.0.1,10.0.0.2", "the TPU pod"), ("localhost", None)],
)
def test_tpu_pod_is_known_by_its_hosts(hosts_, starter, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "libtpu")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts_)
    assert hosts.starter() == starter


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes", "2"], "given together"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "0 to 1"),
        (["--coordinator", "a", "--processes", "2", "--process", "0"], "HOST:PORT"),
        (["--processes", "two"], "whole number"),
        (["--process"], "--process needs a number"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, message, capsys):
    assert main(["train", "demo", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_alone_all_is_done_here():
    done = []
    hosts.on_first(lambda: done.append(1))
    assert (done, hosts.largest(-1), hosts.is_first()) == ([1], -1, True)
    with pytest.raises(ValueError, match="why"), hosts.together():
        raise ValueError("why")


def test_two_processes_resume_after_one_is_killed(tmp_path):
    """Also: SIGTERM to one of them saves in both at the same step."""
    logged.write_tokens(tmp_path / "tokens.bin", 2 * logged.ROWS * 100)
    first = tmp_path / "both" / "checkpoints" / "5"
    processes = pair.start(tmp_path, "--steps", 5000)
    pair.wait_for(first / "sha256.1-of-2.json", processes)
    processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code, said = pair.ends(processes[:1])[0]
    assert time.monotonic() - began < 60
    assert code == 1 and said.splitlines()[-1].startswith("jaxkv: ")
    assert "another process died" in said.splitlines()[-1]
    assert "run the same command again" in said.splitlines()[-1]

    processes[1].communicate()
    saved = tmp_path / "both" / "checkpoints"
    before = max(
        int(p.name) for p in saved.iterdir() if p.name.isdecimal() and is_sealed(p)
    )
    processes = pair.start(tmp_path, "--steps", 5000)
    pair.wait_for(saved / str(before + 5) / "sha256.0-of-2.json", processes)
    processes[1].send_signal(signal.SIGTERM)
    with ThreadPoolExecutor() as both:
        told = list(both.map(lambda p: pair.ends([p])[0], processes))
    assert [code for code, _ in told] == [143, 143], told
    assert "is saved; run the same command to go on" in told[0][1]
    newest = max(int(p.name) for p in saved.iterdir() if p.name.isdecimal())
    assert is_sealed(saved / str(newest))
    # Process 0 alone has bars and says what is read.
    assert "documents" in told[0][1] and "documents" not in told[1][1]
    assert "train" not in told[1][1]
