"""Llama 3.1 8B with latent attention in every layer: 14336 bytes a token in bf16.

9.1 times less than the model's own 131072. Sizes are those of Zebra-Llama's 8B
(X-EcoMLA, arXiv 2503.11132, and its follow-up): a head's 128 numbers are 64 that rotate
and 64 that do not; `jaxkv convert --to mla --rank 160 --rope-dim 64 --query-rank 2048`
makes such a model of a checkpoint.
"""

from dataclasses import replace

from jaxkv.configs.models.llama_3_1_8b import MODEL as GROUPED

from jaxkv.models.sizes import LatentSizes

SIZES = LatentSizes(
    rank=160, rope_dim=64, nope_dim=64, value_dim=128, query_rank=2048, norm=False
)
MODEL = replace(GROUPED, attention=(SIZES,) * GROUPED.layers)
