"""Llama 3.2 1B (arXiv 2407.21783): 1.24e9 parameters, 2.5 GB in bf16.

A token's keys and values take 32768 bytes in bf16 (16 layers, 8 kv heads of 64).
Shapes: https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json
"""

from jaxkv.models.config import DecoderConfig
from jaxkv.models.frequencies import RopeScaling

MODEL = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocabulary=128_256,
    width=2048,
    feed_forward=8192,
    layers=16,
    query_heads=32,
    kv_heads=8,
    head_dim=64,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    ),
    norm_eps=1e-5,
    tie_embeddings=True,
    max_position=131_072,
    stop_tokens=(128_001,),
)
