"""Command lines to dataclasses, errors of one line, and where programs are kept."""

import contextlib
import io
import os
from pathlib import Path
from typing import TypeVar

import tyro

T = TypeVar("T")
BOX = "│╭╮╰╯─ \n"


def parse(options: type[T], arguments: list[str], command: str) -> T:
    """`options` filled from the arguments of `jaxkv COMMAND`; --help prints and exits.

    Raises ValueError, one sentence, for an unknown flag or a value of the wrong type.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                options,
                args=arguments,
                prog=f"jaxkv {command}",
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    raise ValueError(f"{_reason(said.getvalue())} See jaxkv {command} --help.")


def keep_programs() -> None:
    """Keeps compiled programs on disk, so that the same command starts faster again.

    In $JAX_COMPILATION_CACHE_DIR if that is set, which JAX reads by itself.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "jaxkv" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _reason(box: str) -> str:
    """What tyro says in its box: the lines to the first rule, and the nearest flag."""
    lines = [line.strip(BOX) for line in box.splitlines()[1:]]
    first, *others = [text.split("\n") for text in "\n".join(lines).split("\n\n")]
    reason = " ".join(" ".join(first).split()).rstrip(".")
    for block in others:
        if block[0].startswith("Perhaps you meant") and len(block) > 1:
            reason += f"; did you mean {block[1].split()[0]}?"
            return reason
    return f"{reason}."
