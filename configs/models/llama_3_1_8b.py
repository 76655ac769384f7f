"""Llama 3.1 8B (arXiv 2407.21783): 8.03e9 parameters, 16.1 GB in bf16.

A token's keys and values take 131072 bytes in bf16 (32 layers, 8 kv heads of 128).
Shapes: https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
"""

from jaxkv.models.config import DecoderConfig
from jaxkv.models.frequencies import RopeScaling

MODEL = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocabulary=128_256,
    width=4096,
    feed_forward=14_336,
    layers=32,
    query_heads=32,
    kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    ),
    norm_eps=1e-5,
    tie_embeddings=False,
    max_position=131_072,
    stop_tokens=(128_001,),
)
