"""The peer of latent_decode: torch's attention over a dense cache of latents.

    python -m jaxkv.bench.torch_latent HEADS BATCH SLOTS

Two batched products over bf16 latents of 512 + 64 numbers, and a softmax between them:
torch's fused attention takes no heads of 576. Caches of at least 1 GB in turn, in one
CUDA graph. Prints one JSON line.
"""

import json
import sys

import torch

from jaxkv.bench.torch_timing import seconds_a_call, turns

VALUE, ROTARY = 512, 64
SCALE = 192**-0.5
CALLS = 100


def main() -> None:
    heads, batch, slots = (int(x) for x in sys.argv[1:])
    seconds = measure(heads, batch, slots)
    print(json.dumps({"batch": batch, "slots": slots, "seconds": seconds}))


def measure(heads: int, batch: int, slots: int) -> float:
    """Seconds a call, the median of seven runs."""
    numbers = VALUE + ROTARY

    def draw(length: int) -> torch.Tensor:
        size = (batch, length, numbers)
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    q = draw(heads)
    caches = [(draw(slots),) for _ in range(turns(batch * slots * numbers * 2))]

    def call(cache: torch.Tensor) -> torch.Tensor:
        z = torch.matmul(q, cache.transpose(1, 2)) * SCALE
        return torch.matmul(z.softmax(-1), cache[..., :VALUE])

    return seconds_a_call(call, caches, CALLS)


if __name__ == "__main__":
    main()
