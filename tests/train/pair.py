"""Two processes of four CPU devices that train together."""

import socket
import subprocess
import time
from pathlib import Path

from tests.train import launch, logged

SOON = 240  # seconds in which anything here has happened, also on a busy machine


def start(folder: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Processes 0 and 1 of the logged run in `folder`/both, each with its own log."""
    with socket.socket() as held:
        held.bind(("localhost", 0))
        port = held.getsockname()[1]
    return [
        launch.start(
            *("train", launch.RUN, "--out", folder / "both", *arguments),
            *("--coordinator", f"localhost:{port}", "--processes", 2, "--process", i),
            devices=4,
            **{logged.TOKENS: folder / "tokens.bin", logged.LOG: folder / f"{i}.log"},
            JAXKV_TOKENS=folder / "kept",
            # Kept programs are process 0's: it would wait for the other to compile,
            # and Gloo does not wait for more than 30 seconds.
            JAX_ENABLE_COMPILATION_CACHE=0,
        )
        for i in range(2)
    ]


def wait_for(done: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Returns when that file is there; fails when a process ended before."""
    end = time.monotonic() + SOON
    while not done.exists():
        ended = [p.communicate()[0] for p in processes if p.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < end, f"{done} is not there after {SOON} s"
        time.sleep(0.05)


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, what it said) of each."""
    said = [process.communicate(timeout=SOON)[0] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]
