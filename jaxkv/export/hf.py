"""A model as a Hugging Face folder of its own family."""

import os

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.models.decoder import Decoder
from jaxkv.models.families import FAMILIES
from jaxkv.models.folder import save
from jaxkv.models.sizes import LatentSizes


def write_hf(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
) -> list[str]:
    """Writes a folder that transformers loads; there is nothing to say of it.

    Raises ValueError where the model's layers attend as those of its family do not.
    """
    name = model.config.architecture
    for sizes in filter(None, model.config.attention):
        if not isinstance(sizes, LatentSizes):
            raise ValueError(
                f"Layers of this model have {sizes.kind.replace('_', '-')} attention, "
                "which no other program reads from our folders; use the model with "
                "jaxkv."
            )
    if any(model.config.attention) and not FAMILIES[name].latent:
        raise ValueError(
            f"Layers of this model attend to latents, and those of a {name} do not; "
            "give --format deepseek."
        )
    save(model, tokenizer, out, dtype)
    return []
