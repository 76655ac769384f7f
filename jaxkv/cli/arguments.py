"""Command lines to dataclasses, errors of one line, progress, and kept programs."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import tyro

T = TypeVar("T")
SIDES, RULES = "│| ", set("─╭╮╰╯-+")  # of the box; the last two without Unicode


def parse(options: Callable[..., T], arguments: list[str], command: str) -> T:
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


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, there from the first call with (done, total, what) on."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description:<16}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    bar = bars.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )
    task = bar.add_task("", total=None)

    def show(done: int, total: int, what: str) -> None:
        bar.start()  # here, so that an error before it leaves one line
        bar.update(task, completed=done, total=total, description=what)

    try:
        yield show
    finally:
        bar.stop()


def _reason(box: str) -> str:
    """What tyro says in its box: the lines to the first rule, and the nearest flag."""
    lines = [line.strip(SIDES) for line in box.splitlines()[1:]]
    lines = ["" if set(line) <= RULES else line for line in lines]
    blocks = [text.split("\n") for text in re.split(r"\n{2,}", "\n".join(lines))]
    reason = " ".join(" ".join(blocks[0]).split()).rstrip(".")
    for first, *others in blocks[1:]:
        if first.startswith("Perhaps you meant") and others:
            return f"{reason}; did you mean {others[0].split()[0]}?"
    return f"{reason}."
