"""`jaxkv calibrate`: measures of a model what a method reads, and keeps it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxkv.cli.arguments import keep_programs, parse, progress_bar


@dataclass(frozen=True)
class Calibrate:
    """Measures what a method needs to know of a model, and keeps it by its hash.

    Example: jaxkv calibrate --model demo --method qfilters
    """

    method: str
    """a row of `jaxkv methods` that reads a calibration"""
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    text: Path | None = None
    """plain text to make query filters from, instead of our own tasks"""
    out: Path | None = None
    """a folder or .safetensors file to write to, instead of the user's own folder"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the parameters; a calibration is of a model in one dtype"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Calibrate, arguments, "calibrate")
    from jaxkv.calibrate.kinds import KINDS
    from jaxkv.calibrate.store import save, user_folder
    from jaxkv.method import method
    from jaxkv.models.load import load

    kinds = tuple(dict.fromkeys(method(options.method).calibrations))
    text = _checked(options, kinds)
    if options.out is not None and options.out.suffix != ".safetensors":
        if options.out.is_file():
            raise ValueError(f"--out {options.out} is a file; give a folder.")
    keep_programs()
    model, tokenizer = load(options.model, options.dtype)
    for kind in kinds:
        with progress_bar() as progress:
            if text is None:
                make = KINDS[kind].make
                assert make is not None
                arrays = make(model, tokenizer, progress)
            else:
                arrays = _from_text(model, tokenizer, text, options, progress)
        kept = save(options.out or user_folder(), model, kind, arrays)
        print(f"Written: {kept}")
    return 0


def _checked(options: Calibrate, kinds: tuple[str, ...]) -> str | None:
    """The text to be encoded, once all that can be wrong with the options is not."""
    from jaxkv.calibrate.kinds import KINDS

    if not kinds:
        raise ValueError(
            f"Method {options.method!r} reads no calibration; just use it."
        )
    for kind in kinds:
        if KINDS[kind].make is None:
            raise ValueError(
                f"Method {options.method!r} reads {kind}, which take training; run "
                f"{KINDS[kind].command}."
            )
    if options.out is not None and options.out.suffix and len(kinds) > 1:
        raise ValueError(f"--out {options.out}: give a folder for {len(kinds)} files.")
    if options.text is None:
        return None
    if kinds != ("query_filters",):
        raise ValueError(
            f"Method {options.method!r} is calibrated without text; leave out --text."
        )
    try:
        return options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{options.text}: {error}.") from None


def _from_text(model, tokenizer, text, options, progress):
    from jaxkv.calibrate.query_filters import query_filters
    from jaxkv.calibrate.rows import text_tokens

    if tokenizer is None:
        raise ValueError(f"{options.model}: it has no tokenizer to read a text with.")
    tokens = text_tokens(tokenizer, text, model.config.max_position)
    return query_filters(model, tokens, progress=progress)
