"""Llama 3.1 8B with MatryoshkaKV's bases at full rank, to be trained and then cut.

131072 bytes a token in bf16 as it stands, the model's own;
`jaxkv convert --to matryoshka --keep-bytes 1` makes such a model of a checkpoint
(arXiv 2410.14731).
"""

from dataclasses import replace

from jaxkv.configs.models.llama_3_1_8b import MODEL as GROUPED

from jaxkv.models.sizes import LowRankSizes

FULL = (GROUPED.head_dim,) * GROUPED.kv_heads
MODEL = replace(GROUPED, attention=(LowRankSizes(FULL, FULL),) * GROUPED.layers)
