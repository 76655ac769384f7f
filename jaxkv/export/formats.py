"""The formats that a model is exported in, by name."""

import os
from collections.abc import Callable, Mapping

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.export.deepseek import write_deepseek
from jaxkv.export.hf import write_hf
from jaxkv.models.decoder import Decoder

Writer = Callable[
    [Decoder, Tokenizer | None, str | os.PathLike, DTypeLike | None], None
]
FORMATS: Mapping[str, Writer] = {"hf": write_hf, "deepseek": write_deepseek}


def export(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    *,
    format: str = "hf",
    dtype: DTypeLike | None = None,
) -> None:
    """Writes the model into a new folder, whole or not at all.

    dtype: of what is written; that of the parameters when not given. Raises ValueError,
    one sentence, for a format that there is not, or one that cannot express the model.
    """
    if format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"There is no format {format!r} (formats: {known}).")
    FORMATS[format](model, tokenizer, out, dtype)
