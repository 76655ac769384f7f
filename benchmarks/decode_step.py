"""The time of one decode step of a whole model, for several methods, against its floor.

    python benchmarks/decode_step.py --model llama-3.1-8b --context 32768 --batch 8 1

Random weights made on the device (speed does not depend on their values), a real
prefill of random tokens, each method's own cache. The floor is the bytes that a step
must read (every weight but the embedding table, and the slots kept) over the fastest
that any kernel was seen to read the device's memory. With --peer, transformers with a
dense cache of as many slots runs first, on the same device. Prints a table, and one
JSON line a row with --out FILE.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.cache import Cache
from jaxkv.method import method
from jaxkv.models.load import load
from jaxkv.phases import decode, feed, start_turn
from jaxkv.prefill import prefill
from jaxkv.prompts import Prompts
from jaxkv.sample import Sample

STEPS = 64
RUNS = 5
# The best read speed that any kernel was measured at, in bytes a second; the datasheet
# says 4.8e12 for an H200. XLA's own sum, used for other devices, reaches 3.3e12 there.
READ_SPEED = {"NVIDIA H200": 4.46e12}


def main() -> None:
    options = parse()
    print("device", jax.devices()[0].device_kind, "jax", jax.__version__, flush=True)
    peers = peer_times(options) if options.peer else {}
    kind = jax.devices()[0].device_kind
    speed = options.bandwidth or READ_SPEED.get(kind) or read_speed()
    print(f"memory reads at {speed / 1e9:.0f} GB/s", flush=True)
    model, _ = load(options.model)
    jax.block_until_ready(jax.tree.leaves(model))
    for batch in options.batch:
        for row in measure(model, options, batch):
            row["floor_ms"] = row.pop("bytes") / speed * 1e3
            row["floor_ratio"] = row["step_ms"] / row["floor_ms"]
            row["peer_ms"] = peers.get((batch, row["method"] == "full"))
            report(row, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", default=["full", "snapkv", "adakv"])
    parser.add_argument("--bandwidth", type=float, help="bytes/s; measured when absent")
    parser.add_argument("--peer", action="store_true", help="needs torch, transformers")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    return parser.parse_args()


def measure(model, options, batch):
    """A row of figures for each method, all from one prefill."""
    tokens = np.random.default_rng(0).integers(
        0, model.config.vocabulary, (batch, options.context), dtype=np.int32
    )
    prompts = Prompts(tokens, np.full(batch, options.context, np.int32))
    methods = tuple(method(name, keep=options.keep) for name in options.methods)
    headroom = STEPS * (RUNS + 1) + 1

    def run():
        began = time.perf_counter()
        caches = prefill(model, prompts, methods, headroom=headroom, rerun=1)
        jax.block_until_ready(caches)
        return caches, time.perf_counter() - began

    caches, first = run()
    del caches
    caches, prefill_s = run()
    caches = list(caches)
    for name in options.methods:
        row = steps(model, caches.pop(0), tokens[:, -1:])
        yield row | {
            "method": name,
            "batch": batch,
            "context": options.context,
            "keep": 1.0 if name == "full" else options.keep,
            "prefill_s": prefill_s,
            "prefill_compile_s": first - prefill_s,
        }


def steps(model, cache: Cache, last: np.ndarray) -> dict:
    """Decodes RUNS x STEPS tokens after a warm-up; the median step."""
    held, reserved = cache.cache_bytes, cache.headroom_bytes
    slots = int(cache.lengths.sum())
    entry_bytes = cache.layers[0].entry.k.itemsize * model.config.head_dim * 2
    lengths = jnp.ones(len(last), jnp.int32)
    fed = jax.jit(feed, donate_argnames="cache")
    logits, cache = fed(model, cache, last, lengths)
    turn = start_turn(cache, logits, seed=0)
    seconds = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        turn, tokens = decode(model, turn, STEPS, Sample(), ())
        jax.block_until_ready(tokens)
        seconds.append((time.perf_counter() - began) / STEPS)
    if turn.cache.overflow:
        raise RuntimeError("the cache overflowed: the figures would be of nothing")
    table = 0 if model.config.tie_embeddings else model.table[...].nbytes
    weights = sum(a.nbytes for a in jax.tree.leaves(model)) - table
    return {
        "step_ms": float(np.median(seconds[1:])) * 1e3,
        "compile_s": (seconds[0] - seconds[1]) * STEPS,
        "bytes": weights + slots * entry_bytes,
        "cache_bytes": held,
        "headroom_bytes": reserved,
    }


def read_speed() -> float:
    """Bytes a second of a sum over 4 GB."""
    x = jnp.ones((1 << 31,), jnp.bfloat16)
    total = jax.jit(lambda x: x.astype(jnp.float32).sum())
    total(x).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        total(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return x.nbytes / min(seconds)


def peer_times(options) -> dict:
    """{(batch, full cache): ms a step} of transformers, in a process of its own."""
    script = Path(__file__).with_name("decode_step_peer.py")
    kept = int(options.context * options.keep)
    command = [sys.executable, str(script), str(options.context), str(kept)]
    command += [str(batch) for batch in options.batch]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout, end="", flush=True)
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return {(x["batch"], x["slots"] > kept): x["step_ms"] for x in lines}


def report(row: dict, out: Path | None) -> None:
    peer = row["peer_ms"]
    beside = f"{row['step_ms'] / peer:5.2f} of the peer" if peer else ""
    print(
        f"{row['method']:10s} B={row['batch']} T={row['context']} "
        f"keep {row['keep']:.2f}"
        f"  step {row['step_ms']:6.2f} ms, {row['floor_ratio']:.2f} x floor "
        f"({row['floor_ms']:.2f})  {beside}  cache {row['cache_bytes'] / 1e9:.3f} GB"
        f"  prefill {row['prefill_s']:.2f} s (all methods)  compile "
        f"{row['prefill_compile_s']:.1f} + {row['compile_s']:.1f} s",
        flush=True,
    )
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
