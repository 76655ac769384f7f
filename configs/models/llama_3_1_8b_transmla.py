"""Llama 3.1 8B with TransMLA's latents: 36864 bytes a token in bf16.

3.6 times less than the model's own 131072, as arXiv 2502.07864 has it for Llama 3:
`jaxkv convert --to transmla --rank 512 --rope-dim 64` makes such a model of a
checkpoint. Queries keep a head's 128 numbers beside the 64 that rotate.
"""

from dataclasses import replace

from jaxkv.configs.models.llama_3_1_8b import MODEL as GROUPED

from jaxkv.models.sizes import LatentSizes

SIZES = LatentSizes(rank=512, rope_dim=64, nope_dim=128, value_dim=128)
MODEL = replace(GROUPED, attention=(SIZES,) * GROUPED.layers)
