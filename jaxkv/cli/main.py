"""The `jaxkv` command: finds the file of a command, and tells errors in one line."""

import difflib
import importlib
import sys

from jaxkv.stopped import Stopped

COMMANDS = {
    "bench": "times of kernels and decode steps, against floors and peers",
    "calibrate": "measure of a model what a method reads",
    "compare": "what each method keeps, in bytes, answers and time",
    "convert": "write a model whose cache is smaller, to be distilled",
    "export": "write a model for programs without jaxkv",
    "generate": "continue a prompt from a compressed cache",
    "methods": "the methods there are, and their parameters",
    "plan": "what training or serving would take on a TPU slice, without one",
    "train": "train a model from a config, or go on training it",
}
HELP = """\
usage: jaxkv COMMAND [OPTIONS]

Compresses the attention cache of language models in JAX.

{commands}

  jaxkv COMMAND --help says more.

example: jaxkv compare --methods full snapkv random --keep 0.12 0.25
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit code, 2 for bad input."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("", "-h", "--help"):
        listed = "\n".join(f"  {c:<10}{what}" for c, what in COMMANDS.items())
        print(HELP.format(commands=listed), end="")
        return 0 if name else 2
    if name == "--version":
        import jaxkv

        print(f"jaxkv {jaxkv.__version__}")
        return 0
    try:
        if name not in COMMANDS:
            raise ValueError(_unknown(name))
        command = importlib.import_module(f"jaxkv.cli.{name}")
        return command.main(rest) or 0
    except (ValueError, FloatingPointError, OSError) as error:
        # Libraries wrap their messages; ours are one sentence.
        print(f"jaxkv: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"jaxkv: {' '.join(str(stopped).split())}", file=sys.stderr)
        return stopped.code
    except SystemExit as stop:  # tyro's --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("jaxkv: interrupted", file=sys.stderr)
        return 130


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"There is no command {name!r}{hint} (commands: {', '.join(COMMANDS)})."
