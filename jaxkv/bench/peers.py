"""Peers in PyTorch, each in a process of its own, on the same device."""

import json
import subprocess
import sys


def peer_seconds(module: str, *numbers: int) -> dict[tuple[int, int], float]:
    """{(batch, slots a head): seconds} that `python -m module numbers...` prints.

    Raises:
      ValueError: it fails; what it said last is told.
    """
    command = [sys.executable, "-m", module, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(
            f"The peer {module} ended with {said[0]!r}; it needs torch with CUDA and "
            "transformers. Leave out --peer, or install them beside jaxkv."
        )
    rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return {(row["batch"], row["slots"]): row["seconds"] for row in rows}
