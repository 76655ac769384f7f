"""`jaxkv bench`: times of ops and of whole models, against floors and peers."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from jaxkv.cli.arguments import keep_programs, parse, progress_bar


@dataclass(frozen=True)
class Bench:
    """Times ops, or decode steps of a whole model, on this machine's device.

    Every op is first held to its definition, and no time is given when it fails. Each
    time stands beside its floor (bytes over the fastest that the device reads, FLOP
    over its fastest product) and, with --peer, beside PyTorch's in the same run.

    Example: jaxkv bench --model llama-3.1-8b --context 32768 --batch 8 1 --keep 0.1
    """

    op: tuple[str, ...] = ()
    """ops to time; all where neither this nor --model is given"""
    model: str | None = None
    """a preset or folder whose decode step to time, with random weights if a preset"""
    context: int = 32768
    """tokens of the prompts"""
    batch: tuple[int, ...] = (8, 1)
    """prompts at once"""
    methods: tuple[str, ...] = ("full", "snapkv", "adakv")
    """rows of `jaxkv methods`"""
    keep: float = 0.1
    """the share of the prompt that rows keep"""
    peer: bool = False
    """time PyTorch too: cuDNN's attention, or transformers with a dense cache"""
    tune: bool = False
    """find the fastest sizes of each kernel here, and write them to --out"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """of what is stored and computed with"""
    out: Path | None = None
    """a file to write the rows to, a JSON line each; or the table of tuned sizes"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Bench, arguments, "bench")
    from jaxkv.bench.ops import MEASURE

    if unknown := [name for name in options.op if name not in MEASURE]:
        raise ValueError(
            f"There is no op {unknown[0]!r} to time (ops: {', '.join(MEASURE)})."
        )
    if not 0 < options.keep <= 1:
        raise ValueError(f"--keep {options.keep:g} is not above 0 and up to 1.")
    if options.tune:
        return _tune(options.out or Path("tuned.json"))
    import jax

    from jaxkv.bench.floor import speed

    keep_programs()
    fastest = speed()
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}: memory reads at "
        f"{fastest.read / 1e9:.0f} GB/s, products run at "
        f"{fastest.multiply / 1e12:.3g} TFLOP/s",
        flush=True,
    )
    rows = []
    if options.op or options.model is None:
        rows += _ops(options, fastest)
    if options.model is not None:
        rows += _model(options, fastest)
    if options.out is not None:
        beside = options.out.with_name(options.out.name + ".part")
        beside.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        os.replace(beside, options.out)
        print(f"Written: {options.out}")
    return 0


def _tune(out: Path) -> int:
    from jaxkv.bench.tune import tune_ragged_decode, write

    with progress_bar() as progress:
        sizes = tune_ragged_decode(progress)
    for head_dim, best in sizes.items():
        said = ", ".join(f"{name} {size}" for name, size in best.items())
        print(f"ragged_decode, head_dim {head_dim}: {said}")
    write(sizes, "ragged_decode", out)
    print(f"Written: {out}")
    return 0


def _ops(options: Bench, fastest) -> list:
    import jax.numpy as jnp

    from jaxkv.bench.ops import MEASURE

    found = []
    for name in options.op or MEASURE:
        print(f"\n{name}: equal to its definition, then to the XLA path at each size")
        for row in MEASURE[name](fastest, jnp.dtype(options.dtype), options.peer):
            found.append(row)
            products = f"{row.flops / row.seconds / 1e12:5.3g} TFLOP/s  "
            print(
                f"  {row.case:<27} B={row.batch:<3} {row.slots:>6} slots a head  "
                f"{row.seconds * 1e6:8.1f} us  "
                f"{row.bytes / row.seconds / 1e9:5.0f} GB/s  "
                f"{products if row.flops else ''}"
                f"{row.seconds / row.floor:5.2f} x floor"
                f"{_beside(row.seconds, row.xla, 'XLA')}"
                f"{_beside(row.seconds, row.peer, 'the peer')}",
                flush=True,
            )
    return found


def _model(options: Bench, fastest) -> list:
    from jaxkv.bench.model import measure_model
    from jaxkv.bench.peers import peer_seconds
    from jaxkv.method import method
    from jaxkv.models.load import load

    methods = {name: method(name, keep=options.keep) for name in options.methods}
    kept = int(options.context * options.keep)
    peers = {}
    if options.peer:
        numbers = options.context, kept, *options.batch
        peers = peer_seconds("jaxkv.bench.torch_model", *numbers)
    model, _ = load(options.model or "demo", options.dtype)
    found = []
    print(f"\none decode step of {options.model}")
    for batch in options.batch:
        for row in measure_model(model, methods, options.context, batch, fastest):
            slots = options.context if row.method == "full" else kept
            row = replace(row, peer=peers.get((batch, slots)))
            found.append(row)
            print(
                f"  {row.method:<20} B={batch:<3} {row.context} tokens  "
                f"{row.step * 1e3:7.2f} ms  {row.step / row.floor:5.2f} x floor"
                f"{_beside(row.step, row.peer, 'the peer')}  cache "
                f"{row.cache_bytes / 1e9:.3f} GB  compiled in {row.compile:.1f} s  "
                f"prefill of all {row.prefill:.2f} s",
                flush=True,
            )
    return found


def _beside(seconds: float, other: float | None, name: str) -> str:
    return "" if other is None else f"  {seconds / other:5.2f} of {name}"
