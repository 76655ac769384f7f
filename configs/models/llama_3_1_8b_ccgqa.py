"""Llama 3.1 8B with CCGQA: 65536 bytes a token in bf16, and a trail of two tokens.

Half of the model's own 131072, and an eighth of what its 32 query heads would take with
kv heads of their own. Queries are half as many, as in arXiv 2510.04476: attention
itself happens in the latent.
"""

from dataclasses import replace

from jaxkv.configs.models.llama_3_1_8b import MODEL as GROUPED

from jaxkv.models.sizes import ConvolutionalSizes

SIZES = ConvolutionalSizes(query_heads=16, kv_heads=4, head_dim=128, rope_dim=64)
MODEL = replace(GROUPED, attention=(SIZES,) * GROUPED.layers)
