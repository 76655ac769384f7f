"""A model with latent attention as a DeepSeek-V3 folder whose layers are all dense.

Its config.json has first_k_dense_replace = layers, so that no layer has experts. What
transformers reads of one vLLM may read otherwise; `write_deepseek` says where.
"""

import os

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import save
from jaxkv.models.frequencies import RopeScaling
from jaxkv.models.sizes import LatentSizes

ARCHITECTURE = "DeepseekV3ForCausalLM"


def write_deepseek(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
) -> list[str]:
    """Writes a folder that engines load as a DeepseekV3ForCausalLM.

    Returns what vLLM reads otherwise than it is meant, a sentence each. Raises
    ValueError, with the reason, for what one cannot be: layers of grouped queries or of
    different ranks, latents without a norm, RMS norms of single heads.
    """
    save(model, tokenizer, out, dtype, architecture=ARCHITECTURE)
    return _read_otherwise(model.config)


def _read_otherwise(config: DecoderConfig) -> list[str]:
    """vLLM's deepseek_v2.py and its check of configs say so."""
    found, sizes = [], config.sizes(0)
    if isinstance(sizes, LatentSizes) and sizes.nope_dim == sizes.rope_dim:
        found.append(
            f"vLLM takes a config whose qk_nope_head_dim and qk_rope_head_dim are both "
            f"{sizes.rope_dim} for a damaged one; convert with another --rope-dim for "
            "it."
        )
    if isinstance(config.rope_scaling, RopeScaling):
        found.append(
            "vLLM computes every scaled RoPE of this architecture as YaRN, and this "
            "model's is llama3, which transformers reads; answers differ in vLLM."
        )
    return found
