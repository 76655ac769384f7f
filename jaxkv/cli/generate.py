"""`jaxkv generate`: continues a prompt from a compressed cache, word by word."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jaxkv.cli.arguments import keep_programs, parse, progress_bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Generate:
    """Continues a prompt; its cache is compressed first.

    Example: jaxkv generate --method snapkv --keep 0.25 --prompt "the calm fox sends"

    Example: jaxkv generate --mesh tensor=4 --prompt-file long.txt --model folder
    """

    stdin: tyro.conf.Positional[Literal["-"] | None] = None
    """- reads the prompt from standard input"""
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    method: str = "full"
    """a row of `jaxkv methods`, with parameters if you like"""
    keep: float = 0.25
    """fraction of the prompt's tokens that keep a slot; full keeps all"""
    prompt: str | None = None
    """the prompt itself"""
    prompt_file: Path | None = None
    """a file with the prompt"""
    max_new_tokens: int = 64
    """tokens at most"""
    temperature: float = 0.0
    """0 takes the best token"""
    top_k: int = 0
    """draw among the k best tokens; 0 for all"""
    top_p: float = 1.0
    """draw among the fewest best tokens that reach this probability"""
    seed: int = 0
    """of the draw"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the parameters and the cache"""
    mesh: str | None = None
    """devices to run on, as data=2,tensor=4: prompts over data and fsdp, kv heads over
    tensor, weights over fsdp and tensor; auto: all on fsdp. Heads that share a budget
    share it in each of tensor's groups"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Generate, arguments, "generate")
    text = _prompt(options)
    from jaxkv.calibrate.store import calibration
    from jaxkv.generate import stream
    from jaxkv.method import method
    from jaxkv.models.load import load
    from jaxkv.sample import Sample

    row = method(options.method, keep=options.keep)
    sample = Sample(options.temperature, options.top_k, options.top_p)
    keep_programs()
    model, tokenizer = load(options.model, options.dtype, options.mesh)
    if tokenizer is None:
        raise ValueError(f"{options.model}: it has no tokenizer to read a prompt with.")
    for kind in row.calibrations:
        with progress_bar() as progress:
            calibration(model, kind, tokenizer=tokenizer, progress=progress)
    chunks = stream(
        model,
        tokenizer.encode(text).ids,
        method=row,
        max_new_tokens=options.max_new_tokens,
        sample=sample,
        seed=options.seed,
    )
    for piece in pieces(tokenizer, (rows[0] for rows in chunks)):
        print(piece, end="", flush=True)
    print()
    return 0


def pieces(tokenizer: "Tokenizer", chunks: Iterator[list[int]]) -> Iterator[str]:
    """The text each chunk of tokens adds; a broken character waits for its rest."""
    ids: list[int] = []
    said = ""
    for chunk in chunks:
        ids += chunk
        text = tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")
        yield text[len(said) :]
        said = text


def _prompt(options: Generate) -> str:
    given = (options.prompt, options.prompt_file, options.stdin)
    if sum(source is not None for source in given) != 1:
        raise ValueError("Give the prompt once: --prompt TEXT, --prompt-file F or -.")
    if options.prompt is not None:
        text = options.prompt
    elif options.prompt_file is None:
        text = sys.stdin.read()
    else:
        try:
            text = options.prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{options.prompt_file}: {error}.") from None
    if not text.strip():
        raise ValueError("The prompt is empty; give at least one word.")
    return text
