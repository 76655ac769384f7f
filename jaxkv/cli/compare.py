"""`jaxkv compare`: a table of bytes, answers and times, and a folder with all of it."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxkv.cli.arguments import keep_programs, parse, progress_bar


@dataclass(frozen=True)
class Compare:
    """Asks a model the same questions from the cache that each method keeps.

    Prints a table, and writes report.html, its pictures and the data behind them.

    Example: jaxkv compare --methods full snapkv "snapkv(pool=1)" --keep 0.12 0.25

    Example: jaxkv compare --model folder --dtype bfloat16 --mesh data=2,tensor=4
    """

    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    methods: tuple[str, ...] = ()
    """rows of `jaxkv methods`, with parameters if you like, or all; core by default"""
    keep: tuple[float, ...] = (0.12,)
    """fractions of the prompt, above 0 and up to 1"""
    context: tuple[int, ...] = (2048,)
    """tokens of context and question; several for depth against length"""
    samples: int = 1
    """contexts a task, most with two questions; 1 is a smoke run, 100 a measurement"""
    tasks: tuple[str, ...] = ()
    """names such as single_needle, or sparse, dense, all; core by default"""
    data: Path | None = None
    """a JSONL file instead of tasks: context, question, answer_prefix, answer, task"""
    question: Literal["aware", "agnostic", "both"] = "both"
    """compress the context with the question, before it is known, or either"""
    batch: int = 8
    """prompts at a time"""
    seed: int = 0
    """of the contexts"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the parameters and the cache"""
    perplexity: bool = False
    """of held-out text too, in the agnostic setting"""
    mesh: str | None = None
    """devices to run on, as data=2,tensor=4: prompts over data and fsdp, kv heads over
    tensor, weights over fsdp and tensor; auto: all on fsdp. Heads that share a budget
    share it in each of tensor's groups"""
    out: Path = Path("jaxkv-compare")
    """folder to write to"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Compare, arguments, "compare")
    from jaxkv.evaluate.compare import compare
    from jaxkv.evaluate.show import print_table
    from jaxkv.evaluate.table import check_folder

    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; give a folder.")
    check_folder(options.out)  # before hours of work
    keep_programs()
    with progress_bar() as progress:
        table = compare(
            model=options.model,
            methods=options.methods or None,
            keep=options.keep,
            context=options.context,
            samples=options.samples,
            tasks=options.tasks or None,
            question=options.question,
            batch=options.batch,
            seed=options.seed,
            dtype=options.dtype,
            progress=progress,
            data=options.data,
            perplexity=options.perplexity,
            mesh=options.mesh,
        )
    command = shlex.join(["jaxkv", "compare", *arguments])
    table = dataclasses.replace(table, command=command)
    table.save(options.out)
    print_table(table)
    print(f"Written: {options.out}/report.html, compare.json, answers.jsonl, kept.json")
    return 0
