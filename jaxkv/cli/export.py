"""`jaxkv export`: writes a model for programs without jaxkv."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxkv.cli.arguments import parse

if TYPE_CHECKING:
    from jaxkv.export.stablehlo import Programs


@dataclass(frozen=True)
class Export:
    """Writes a model into a new folder that other programs load.

    Example: jaxkv export --model converted --format deepseek --out for-engines

    Example: jaxkv export --format stablehlo --method snapkv --keep 0.25 --out programs
    """

    out: Path
    """the folder to write; it must not be there yet, or be empty"""
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    format: Literal["hf", "deepseek", "orbax", "add_on", "stablehlo"] = "hf"
    """hf: the model's own family, as transformers has it; deepseek: latent attention as
    a DeepseekV3ForCausalLM with dense layers; orbax: a checkpoint of the parameters by
    path; add_on: what was changed of --base, for jaxkv; stablehlo: a prefill and a
    decode step, as programs that run without jaxkv"""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """of the weights that are written"""
    base: str | None = None
    """of add_on: demo, a folder or org/name, which is read beside it; demo when not
    given"""
    method: str | None = None
    """of stablehlo, as all that follow: a row of `jaxkv methods`, which the prefill
    compresses with; full when not given"""
    keep: float | None = None
    """fraction of the prompt's tokens that keep a slot; 0.25 when not given"""
    batch: int | None = None
    """prompts that the programs take at one time; 1 when not given"""
    context: int | None = None
    """tokens of the longest prompt; 2048 when not given"""
    max_new_tokens: int | None = None
    """tokens that the cache has room for; 256 when not given"""
    target: Literal["any", "cpu", "gpu", "sm90", "tpu"] | None = None
    """any: one program for cpu, cuda and tpu; sm90 (Hopper) and tpu: with kernels"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Export, arguments, "export")
    from jaxkv.export.formats import export
    from jaxkv.models.load import load
    from jaxkv.models.new_folder import refuse_to_overwrite

    # Orbax prints a traceback of an error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    refuse_to_overwrite(options.out)
    how = {"format": options.format, "dtype": options.dtype, "base": options.base}
    programs = _programs(options)
    model, tokenizer = load(options.model)
    notes = export(model, tokenizer, options.out, **how, programs=programs)
    print("\n".join([f"Written: {options.out}", *notes]))
    return 0


def _programs(options: Export) -> "Programs | None":
    """What is asked of programs, where there are to be any."""
    asked = {
        name: value
        for name in ("batch", "context", "max_new_tokens", "target")
        if (value := getattr(options, name)) is not None
    }
    row = options.method, options.keep
    if options.format != "stablehlo":
        if asked or row != (None, None):
            raise ValueError(
                f"A {options.format} folder holds no programs, and --method, --keep, "
                "--batch, --context, --max-new-tokens and --target are theirs; give "
                "--format stablehlo."
            )
        return None
    from jaxkv.export.stablehlo import Programs
    from jaxkv.method import method

    name = "full" if options.method is None else options.method
    keep = 0.25 if options.keep is None else options.keep
    return Programs(method(name, keep=keep), **asked)
