"""`jaxkv convert`: writes a model whose cache is smaller."""

from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Generic, Literal, TypeVar

from tokenizers import Tokenizer
from tyro.conf import OmitArgPrefixes

from jaxkv.calibrate.rows import SEQUENCES, task_tokens, text_tokens
from jaxkv.cli.arguments import keep_programs, parse, progress_bar
from jaxkv.convert.base import Rows, Way
from jaxkv.convert.ways import WAYS
from jaxkv.models.config import DecoderConfig
from jaxkv.models.folder import refuse_to_overwrite, save
from jaxkv.models.load import dtype_of, load
from jaxkv.models.sizes import LatentSizes, LowRankSizes, Sizes

DEFAULT = "mla"
SEED = 1 << 20  # of calibration contexts: none that `jaxkv compare` asks about
W = TypeVar("W", bound=Way)


@dataclass(frozen=True)
class Convert(Generic[W]):
    """Converts a model's attention and writes the model into a new folder.

    --to says which way, and --to WAY --help what options it has. mla: latent attention
    from a joint SVD (X-EcoMLA). transmla: latent attention that calibration text is
    used for (TransMLA). gqa, mqa: fewer kv heads, or one, each the mean of several.
    matryoshka, eigen: keys and values of each kv head cut to the directions that count,
    after RoPE (MatryoshkaKV) or before it (Eigen Attention). What is written mostly
    answers poorly until it is distilled, with the model that it was made from as a
    teacher.

    Example: jaxkv convert --model demo --to mla --rank 64 --rope-dim 32 --out as-mla

    Example: jaxkv convert --to transmla --rank 128 --text book.txt --out as-mla
    """

    out: Path
    """the folder to write; it must not be there yet, or be empty"""
    way: Annotated[W, OmitArgPrefixes]
    model: str = "demo"
    """demo, or a folder with config.json, safetensors and tokenizer.json"""
    to: Literal[tuple(WAYS)] = DEFAULT  # pyrefly: ignore[invalid-literal]
    """which way"""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """of the parameters that are read and written; as they are stored when not given.
    What is calibrated and decomposed is computed in float32 and float64"""
    text: tuple[Path, ...] = ()
    """plain text files for ways that calibrate, instead of our own tasks"""
    rows: int = SEQUENCES
    """of up to 2048 tokens that a way calibrates on, of each text"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = _parsed(arguments)
    refuse_to_overwrite(options.out)
    texts = [_read(path) for path in options.text]
    keep_programs()
    dtype = dtype_of(options.model) if options.dtype is None else options.dtype
    model, tokenizer = load(options.model, dtype)
    rows: Rows = ()
    if options.way.calibrates:
        rows = _rows(options, tokenizer, model.config.max_position, texts)
    with progress_bar() as progress:
        converted = options.way(model, rows, progress)
    save(converted, tokenizer, options.out)
    before, after = (_numbers(m.config) for m in (model, converted))
    print(
        f"Written: {options.out}\n"
        f"A token's entries: {2 * before} bytes in bfloat16, now {2 * after} "
        f"({before / after:.1f} times fewer); {_sizes(converted.config)}"
    )
    return 0


def _parsed(arguments: list[str]) -> Convert[Any]:
    """The options of the way that is asked for; ValueError for another way's."""
    name = _asked(arguments)
    if name not in WAYS:  # as tyro says
        name = DEFAULT
    own = _flags(WAYS[name])
    known = {flag for way in WAYS.values() for flag in _flags(way)}
    for word in arguments:
        flag = word.partition("=")[0].replace("_", "-").replace("--no-", "--", 1)
        if flag in known and flag not in own:
            has = " ".join(own) or "none of its own"
            raise ValueError(f"--to {name} has no option {flag}; it has {has}.")
    return parse(Convert[WAYS[name]], arguments, "convert")


def _flags(way: type[Way]) -> list[str]:
    """The options that belong to a way."""
    flags = ["--" + field.name.replace("_", "-") for field in fields(way)]
    return [*flags, "--text", "--rows"] if way.calibrates else flags


def _asked(arguments: list[str]) -> str:
    """What --to says."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--to":
            return following
        if word.startswith("--to="):
            return word.removeprefix("--to=")
    return DEFAULT


def _rows(
    options: Convert[Any], tokenizer: Tokenizer | None, longest: int, texts: list[str]
) -> Rows:
    """Of each of the texts; else of our tasks."""
    count = options.rows
    if count < 1:
        raise ValueError(f"--rows {count}; give one at least.")
    if tokenizer is None:
        raise ValueError(
            f"{options.model}: it has no tokenizer to read calibration text with; put "
            "its tokenizer.json beside it."
        )
    if not texts:
        return task_tokens(tokenizer, longest, SEED, count)
    each = (text_tokens(tokenizer, text, longest, count) for text in texts)
    return [row for rows in each for row in rows]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}.") from None


def _sizes(config: DecoderConfig) -> str:
    """What is new of the layers."""
    ranks = [_rank(sizes) for sizes in config.attention if sizes is not None]
    return f"ranks {', '.join(ranks)}" if ranks else f"kv heads {config.kv_heads}"


def _rank(sizes: Sizes) -> str:
    """Of one layer's latents, or of its heads' keys and values in the mean."""
    match sizes:
        case LatentSizes():
            return str(sizes.rank)
        case LowRankSizes():
            keys, values = fmean(sizes.key_ranks), fmean(sizes.value_ranks)
            return f"{keys:g} + {values:g}"
    return sizes.kind


def _numbers(config: DecoderConfig) -> int:
    """Numbers that all layers cache of a token."""
    return sum(config.entry_numbers(i) for i in range(config.layers))
