"""The peer of ragged_decode: torch's cuDNN attention over a dense cache.

    python -m jaxkv.bench.torch_attention BATCH SLOTS [BATCH SLOTS ...]

As many slots a head as ours has on average, bf16, 32 query and 8 kv heads of 128, at
least 1 GB of caches in turn, in one CUDA graph. Prints one JSON line for each.
"""

import json
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

N, K, H = 32, 8, 128
IN_TURN = 1 << 30
CALLS = 400


def main() -> None:
    numbers = [int(x) for x in sys.argv[1:]]
    for batch, slots in zip(numbers[::2], numbers[1::2], strict=True):
        seconds = measure(batch, slots)
        print(json.dumps({"batch": batch, "slots": slots, "seconds": seconds}))


def measure(batch: int, slots: int) -> float:
    """Seconds a call, the median of seven runs."""
    number = max(1, min(16, -(-IN_TURN // (batch * K * slots * H * 4))))

    def draw(heads: int, length: int) -> torch.Tensor:
        size = (batch, heads, length, H)
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    turns = [(draw(N, 1), draw(K, slots), draw(K, slots)) for _ in range(number)]
    rounds = max(1, CALLS // number)

    def run() -> None:
        for _ in range(rounds):
            for q, k, v in turns:
                scaled_dot_product_attention(q, k, v, enable_gqa=True)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
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
    return statistics.median(seconds[1:]) / (rounds * number)


if __name__ == "__main__":
    main()
