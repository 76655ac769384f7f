"""`jaxkv` in a process of its own, as tests of what ends a process need it."""

import os
import subprocess
import sys
from pathlib import Path

RUN = str(Path(__file__).with_name("logged.py"))
COMMAND = "import sys; from jaxkv.cli.main import main; sys.exit(main())"


def start(
    *arguments: object,
    devices: int = 8,
    first: str = "",
    **environment: object,
) -> subprocess.Popen[str]:
    """`jaxkv ARGUMENTS` on so many fake CPU devices; its output is piped.

    first: statements that Python executes before.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    own |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in half the time
    own |= {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-c", first + COMMAND, *map(str, arguments)],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: object, first: str = "", **environment: object) -> tuple[int, str]:
    """(exit code, what it said) of `start`, when it has ended."""
    process = start(*arguments, first=first, **environment)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said
