"""`jaxkv convert`: writes a model whose cache is smaller, to be distilled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxkv.cli.arguments import parse, progress_bar


@dataclass(frozen=True)
class Convert:
    """Converts a model's attention and writes the model into a new folder.

    mla is X-EcoMLA's start: a joint SVD of keys and values. It answers poorly until it
    is distilled, with the model that it was made from as a teacher.

    Example: jaxkv convert --model demo --to mla --rank 64 --rope-dim 32 --out as-mla
    """

    out: Path
    """the folder to write; it must not be there yet, or be empty"""
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    to: Literal["mla"] = "mla"
    """what layers attend with: mla is latent attention"""
    rank: int | None = None
    """of keys and values; by --energy when not given"""
    rope_dim: int | None = None
    """numbers of the rotated key that all heads share; half a head when not given"""
    query_rank: int | None = None
    """of queries; they stay whole when not given"""
    energy: float = 0.95
    """share of a layer's keys and values that a rank is found to hold"""
    layers: tuple[int, ...] | None = None
    """those to convert, counted from 0; all when not given"""
    norm: bool = True
    """RMS norm of latents; deepseek folders have it"""
    rotated: Literal["matching", "last"] = "matching"
    """rotate the pairs that turn as they did, or a head's last numbers as the paper"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Convert, arguments, "convert")
    from jaxkv.convert.x_ecomla import XEcoMLA
    from jaxkv.models.folder import refuse_to_overwrite, save
    from jaxkv.models.load import load
    from jaxkv.models.sizes import LatentSizes

    refuse_to_overwrite(options.out)
    convert = XEcoMLA(
        rank=options.rank,
        rope_dim=options.rope_dim,
        query_rank=options.query_rank,
        layers=options.layers,
        energy=options.energy,
        norm=options.norm,
        rotated=options.rotated,
    )
    model, tokenizer = load(options.model)
    with progress_bar() as progress:
        converted = convert(model, progress)
    save(converted, tokenizer, options.out)
    before, after = (_numbers(m.config) for m in (model, converted))
    ranks = [s.rank for s in converted.config.attention if isinstance(s, LatentSizes)]
    print(
        f"Written: {options.out}\n"
        f"A token's entries: {2 * before} bytes in bfloat16, now {2 * after} "
        f"({before / after:.1f} times fewer); ranks {', '.join(map(str, ranks))}"
    )
    return 0


def _numbers(config) -> int:
    """Numbers that all layers cache of a token."""
    return sum(config.entry_numbers(i) for i in range(config.layers))
