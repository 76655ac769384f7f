"""How long a call of torch takes on the GPU, without what the host adds."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

IN_TURN = 1 << 30  # bytes that are read in turn, so that no cache holds them
MOST_TURNS = 16
RUNS = 7


def turns(size: int) -> int:
    """How many arrays of `size` bytes are read in turn."""
    return max(1, min(MOST_TURNS, -(-IN_TURN // size)))


def seconds_a_call(
    call: Callable[..., Any], turns: Sequence[tuple], calls: int
) -> float:
    """Of call(*arrays), for each of `turns` in turn, in one CUDA graph; the median."""
    rounds = max(1, calls // len(turns))

    def run() -> None:
        for _ in range(rounds):
            for arrays in turns:
                call(*arrays)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    seconds = []
    for _ in range(1 + RUNS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) / (rounds * len(turns))
