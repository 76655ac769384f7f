"""The peer of latent_decode: torch's attention over a dense cache of latents.

    python -m jaxkv.bench.torch_latent HEADS BATCH SLOTS

Two batched products over bf16 latents of 512 + 64 numbers, and a softmax between them:
torch's fused attention takes no heads of 576. Caches of at least 1 GB in turn, in one
CUDA graph. Prints one JSON line.
"""

import json
import statistics
import sys
import time

import torch

VALUE, ROTARY = 512, 64
SCALE = 192**-0.5
IN_TURN = 1 << 30
CALLS = 100


def main() -> None:
    heads, batch, slots = (int(x) for x in sys.argv[1:])
    seconds = measure(heads, batch, slots)
    print(json.dumps({"batch": batch, "slots": slots, "seconds": seconds}))


def measure(heads: int, batch: int, slots: int) -> float:
    """Seconds a call, the median of seven runs."""
    numbers = VALUE + ROTARY
    turns = max(1, min(16, -(-IN_TURN // (batch * slots * numbers * 2))))

    def draw(length: int) -> torch.Tensor:
        size = (batch, length, numbers)
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    q, caches = draw(heads), [draw(slots) for _ in range(turns)]
    rounds = max(1, CALLS // turns)

    def run() -> None:
        for _ in range(rounds):
            for cache in caches:
                z = torch.matmul(q, cache.transpose(1, 2)) * SCALE
                torch.matmul(z.softmax(-1), cache[..., :VALUE])

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) / (rounds * turns)


if __name__ == "__main__":
    main()
