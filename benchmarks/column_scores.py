"""The time of column_scores over a long prompt, against its floor and cuDNN.

    python benchmarks/column_scores.py --tokens 32768

One layer of 32 query and 8 kv heads of 128 in bfloat16. The last 32 queries, over keys
of several layers in turn, so that no cache holds them; and all queries, with the lse of
a prefill and with their own. The peer is the causal forward pass of cuDNN through
`jax.nn.dot_product_attention` in the same run. A wrong result prints no time. Times are
those of all GPU kernels of a call, as the profiler sees them, and beside it what a call
takes by the clock; the median of RUNS.
"""

import argparse
import gzip
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.column_scores import column_scores, reference

N, K, H = 32, 8, 128
FEW = 32
LAYERS = 16
RUNS = 10
READ_SPEED = 4.46e12  # bytes/s, the best that any kernel was measured at on an H200
MATRIX_SPEED = 723e12  # FLOP/s of a large matrix product there
TOLERANCE = 2e-5  # of the largest score; products of bfloat16 are exact in fp32

score = partial(column_scores, scale=H**-0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32768)
    S = parser.parse_args().tokens
    print("device", jax.devices()[0].device_kind, "jax", jax.__version__, flush=True)
    gate()
    q, *few = drawn(0, 2.0, S, N), *(drawn(i, 2.0, FEW, N) for i in range(LAYERS))
    keys = [drawn(100 + i, 1.0, S, K) for i in range(LAYERS)]
    at = jnp.arange(S, dtype=jnp.int32)[None]
    lse = jax.jit(score)(q, keys[0], at, at)[1]
    attend = partial(
        jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"
    )
    peer = measure(attend, (q, keys[0], keys[0]))
    products = 2 * N * H * S * S / 2 / MATRIX_SPEED
    read = 2 * K * H * S
    report("cuDNN, causal forward", peer, peer, 2 * read, 2 * products)

    def of_layers(few, keys, q_at, k_at):
        return [score(q, k, q_at, k_at)[0] for q, k in zip(few, keys, strict=True)]

    paid = measure(of_layers, (few, keys, at[:, -FEW:], at))
    paid = [x / LAYERS for x in paid]
    report(f"last {FEW} queries", paid, peer, read, read / READ_SPEED)
    every = q, keys[0], at, at
    paid = measure(lambda *x: score(*x[:4], lse=x[4])[0], (*every, lse))
    report("all queries, lse given", paid, peer, read, products)
    paid = measure(lambda *x: score(*x)[0], every)
    report("all queries, own lse", paid, peer, read, 2 * products)


def gate() -> None:
    """Raises when the op is not its reference at a size that the reference can take."""
    at = jnp.arange(700, dtype=jnp.int32)[None]
    args = drawn(0, 2.0, 300, N), drawn(1, 1.0, 700, K), at[:, -300:], at
    ours, lse = jax.jit(score)(*args)
    with jax.default_matmul_precision("highest"):
        wanted, wanted_lse = jax.jit(partial(reference.column_scores, scale=H**-0.5))(
            *args
        )
    np.testing.assert_allclose(ours, wanted, atol=TOLERANCE * float(wanted.max()))
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-4)


def drawn(seed: int, spread: float, tokens: int, heads: int):
    """Random queries or keys of one sequence."""
    shape = 1, tokens, heads, H
    return spread * jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def measure(function, arguments) -> list[float]:
    """Seconds of a call on the device and by the clock."""
    run = jax.jit(function)
    jax.block_until_ready(run(*arguments))
    clock = []
    for _ in range(RUNS):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        clock.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(RUNS):
                jax.block_until_ready(run(*arguments))
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [on_device(events), float(np.median(clock))]


def on_device(events) -> float:
    """Seconds of one call's GPU kernels: each one's median, times how often it ran."""
    gpu = {
        event["pid"]
        for event in events
        if event.get("name") == "process_name" and "GPU" in event["args"]["name"]
    }
    found: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event["pid"] in gpu:
            found.setdefault(event["name"], []).append(event["dur"])
    return sum(np.median(x) * len(x) / RUNS for x in found.values()) * 1e-6


def report(name: str, seconds, peer, read: int, floor: float) -> None:
    """One line. read: bytes of keys, and values, read once."""
    device, clock = seconds
    print(
        f"{name:24s} {device * 1e3:9.4f} ms on the device, {clock * 1e3:9.4f} by the "
        f"clock, {read / 1e6:.0f} MB, floor {floor * 1e3:.4f} ms, "
        f"{device / floor:.2f} x floor, {device / peer[0]:.4f} x cuDNN",
        flush=True,
    )


if __name__ == "__main__":
    main()
