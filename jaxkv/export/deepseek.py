"""A model with latent attention as a DeepSeek-V3 folder whose layers are all dense.

Its config.json has first_k_dense_replace = layers, so that no layer has experts. vLLM
takes a config whose qk_nope_head_dim equals its qk_rope_head_dim for a damaged one:
convert with another rope_dim for it.
"""

import os

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import save

ARCHITECTURE = "DeepseekV3ForCausalLM"


def write_deepseek(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
) -> None:
    """Writes a folder that engines load as a DeepseekV3ForCausalLM.

    Raises ValueError, with the reason, for what one cannot be: layers of grouped
    queries or of different ranks, latents without a norm, RMS norms of single heads.
    """
    save(model, tokenizer, out, dtype, architecture=ARCHITECTURE)
