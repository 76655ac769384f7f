"""Llama 3.1 8B with two kv heads where it has eight: 32768 bytes a token in bf16.

Four times less than the model's own 131072; `jaxkv convert --to gqa --kv-heads 2` makes
such a model of a checkpoint (GQA, arXiv 2305.13245).
"""

from dataclasses import replace

from jaxkv.configs.models.llama_3_1_8b import MODEL as GROUPED

MODEL = replace(GROUPED, kv_heads=2)
