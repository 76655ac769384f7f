"""The peer of a whole model's step: transformers at llama-3.1-8b's shape.

    python -m jaxkv.bench.torch_model CONTEXT KEPT BATCH [BATCH ...]

It decodes with a dense cache of CONTEXT and of KEPT random slots a head: what PyTorch
presses that really shorten the cache leave to a step. Prints one JSON line for each.
Needs torch and transformers; random bf16 weights on the GPU.
"""

import json
import statistics
import sys

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=131072,
    rope_theta=500000.0,
)


def main() -> None:
    context, kept, *batches = map(int, sys.argv[1:])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(CONFIG).eval()
    for batch in batches:
        for slots in (context, kept):
            row = {"batch": batch, "slots": slots}
            seconds = step(model, batch, slots, context)
            print(json.dumps(row | {"seconds": seconds}))


@torch.no_grad()
def step(model, batch: int, slots: int, context: int, count: int = 24) -> float:
    cache = DynamicCache()
    for layer in range(CONFIG.num_hidden_layers):
        shape = (batch, CONFIG.num_key_value_heads, slots, CONFIG.head_dim)
        k, v = (torch.randn(shape, device="cuda") for _ in range(2))
        cache.update(k, v, layer)
    token = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
    times = []
    for i in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        position = torch.full((batch, 1), context + i, device="cuda")
        out = model(token, past_key_values=cache, position_ids=position)
        token = out.logits[:, -1:].argmax(-1)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[4:]) / 1e3


if __name__ == "__main__":
    main()
