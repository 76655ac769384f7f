"""The peer of ragged_decode: torch's cuDNN attention over a dense cache.

    python -m jaxkv.bench.torch_attention BATCH SLOTS [BATCH SLOTS ...]

As many slots a head as ours has on average, bf16, 32 query and 8 kv heads of 128, at
least 1 GB of caches in turn, in one CUDA graph. Prints one JSON line for each.
"""

import json
import sys
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jaxkv.bench.torch_timing import seconds_a_call, turns

N, K, H = 32, 8, 128
CALLS = 400


def main() -> None:
    numbers = [int(x) for x in sys.argv[1:]]
    for batch, slots in zip(numbers[::2], numbers[1::2], strict=True):
        seconds = measure(batch, slots)
        print(json.dumps({"batch": batch, "slots": slots, "seconds": seconds}))


def measure(batch: int, slots: int) -> float:
    """Seconds a call, the median of seven runs."""

    def draw(heads: int, length: int) -> torch.Tensor:
        size = (batch, heads, length, H)
        return torch.randn(*size, device="cuda", dtype=torch.bfloat16)

    number = turns(batch * K * slots * H * 4)
    given = [(draw(N, 1), draw(K, slots), draw(K, slots)) for _ in range(number)]
    call = partial(scaled_dot_product_attention, enable_gqa=True)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return seconds_a_call(call, given, CALLS)


if __name__ == "__main__":
    main()
