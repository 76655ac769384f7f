"""`jaxkv export`: writes a model for programs without jaxkv."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxkv.cli.arguments import parse


@dataclass(frozen=True)
class Export:
    """Writes a model into a new folder that other programs load.

    Example: jaxkv export --model converted --format deepseek --out for-engines
    """

    out: Path
    """the folder to write; it must not be there yet, or be empty"""
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    format: Literal["hf", "deepseek"] = "hf"
    """hf: the model's own family, as transformers has it; deepseek: latent attention as
    a DeepseekV3ForCausalLM with dense layers"""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """of the weights that are written"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Export, arguments, "export")
    from jaxkv.export.formats import export
    from jaxkv.models.load import load

    model, tokenizer = load(options.model)
    export(model, tokenizer, options.out, format=options.format, dtype=options.dtype)
    print(f"Written: {options.out}")
    return 0
