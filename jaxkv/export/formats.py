"""The formats that a model is exported in, by name."""

import os
from collections.abc import Callable, Mapping

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.export.add_on import write_add_on
from jaxkv.export.deepseek import write_deepseek
from jaxkv.export.hf import write_hf
from jaxkv.export.orbax import write_orbax
from jaxkv.export.stablehlo import Programs, write_stablehlo
from jaxkv.models.decoder import Decoder

FORMATS: Mapping[str, Callable[..., list[str]]] = {
    "hf": write_hf,
    "deepseek": write_deepseek,
    "orbax": write_orbax,
    "add_on": write_add_on,
    "stablehlo": write_stablehlo,
}


def export(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    *,
    format: str = "hf",
    dtype: DTypeLike | None = None,
    programs: Programs | None = None,
    base: str | os.PathLike | None = None,
) -> list[str]:
    """Writes the model into a new folder, whole or not at all.

    Returns what is to be known of it, a sentence each. dtype: of what is written; that
    of the parameters when not given. programs: the sizes and the method of stablehlo's.
    base: the model that add_on's is an add-on of; the demo when not given. Raises
    ValueError, one sentence, for a format that there is not, or one that cannot express
    the model; OSError where it cannot be written.
    """
    if format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"There is no format {format!r} (formats: {known}).")
    if base is not None:
        if format != "add_on":
            raise ValueError(f"A {format} folder has no base; give format add_on.")
        return write_add_on(model, tokenizer, out, dtype, base)
    if programs is None:
        return FORMATS[format](model, tokenizer, out, dtype)
    if format != "stablehlo":
        raise ValueError(f"A {format} folder holds no programs; give format stablehlo.")
    return write_stablehlo(model, tokenizer, out, dtype, programs)
