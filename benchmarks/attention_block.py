"""One attention block over a prompt: CCGQA 8x against MHA, both against FLOP floors.

    python benchmarks/attention_block.py
    python benchmarks/attention_block.py --tokens 512 --width 256   # to try it on a CPU

At llama-3.1-8b's width by default. The block is a layer's attention, projections and
all: x [1, tokens, width] to its output, and back to gradients of x and of the weights.
MHA has width / 128 heads; CCGQA half as many query heads, and kv heads that cache an
eighth of it. The floor is the FLOPs that are needed, nothing computed twice (backward
twice the forward's), at the maker's peak. A block whose bfloat16 is not near its own
float32 is not timed.
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkv.attention.base import Attention
from jaxkv.attention.kinds import attention
from jaxkv.bench.row import hold
from jaxkv.bench.timing import median_seconds
from jaxkv.models.config import DecoderConfig
from jaxkv.models.sizes import ConvolutionalSizes
from jaxkv.train.speed import peak_flops

HEAD = 128
GATE = 512  # tokens at most on which a block is held to itself in float32
NEAR = 0.03  # of the largest output
PASSES = ("forward", "backward")


def main() -> None:
    options = parse()
    peak = peak_flops(jax.devices()[0])
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {options.tokens} "
        f"tokens, width {options.width}, bfloat16, median of {options.runs}"
    )
    first: dict[str, float] = {}
    for name, config in blocks(options.width).items():
        block = attention(config, 0, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        check(name, block, config, options.tokens)
        found = times(block, config, options.tokens, options.runs)
        first = first or found
        print(f"  {name}: {config.entry_numbers(0)} numbers cached a token")
        for kind in PASSES:
            needed = flops(block, config, options.tokens) * (1 + (kind == "backward"))
            of_floor = "" if peak is None else f"{found[kind] * peak / needed:.2f}"
            print(
                f"    {kind:8} {found[kind] * 1e3:9.3f} ms  {needed / 1e12:.3f} TFLOP  "
                f"of its floor {of_floor or 'n/a'}  "
                f"{first[kind] / found[kind]:.2f} times as fast as MHA",
                flush=True,
            )


def blocks(width: int) -> dict[str, DecoderConfig]:
    """Decoders of one layer each."""
    heads = width // HEAD
    if width % HEAD or heads < 2:
        raise SystemExit(f"--width {width}: give a multiple of {2 * HEAD}.")
    mha = DecoderConfig(
        width=width,
        layers=1,
        query_heads=heads,
        kv_heads=heads,
        head_dim=HEAD,
        rope_theta=500_000.0,
    )
    kv_heads = max(heads // 8, 1)
    sizes = ConvolutionalSizes(heads // 2, kv_heads, HEAD, HEAD // 2)
    return {
        "MHA": mha,
        f"CCGQA {heads / kv_heads:g}x": DecoderConfig(
            width=width, layers=1, rope_theta=500_000.0, attention=(sizes,)
        ),
    }


def times(
    block: Attention, config: DecoderConfig, tokens: int, runs: int
) -> dict[str, float]:
    """Seconds of the forward pass, and of the backward pass on top of it."""
    x, position = drawn(config, tokens)

    @jax.jit
    def forward(block, x):
        return block(x, position)

    @jax.jit
    def both(block, x, weight):
        out, back = jax.vjp(lambda block, x: block(x, position), block, x)
        return out, back(weight)

    seconds = median_seconds(lambda: forward(block, x), runs)
    whole = median_seconds(lambda: both(block, x, x), runs)
    return {"forward": seconds, "backward": whole - seconds}


def check(name: str, block: Attention, config: DecoderConfig, tokens: int) -> None:
    """Raises FloatingPointError where bfloat16 is not near float32."""
    x, position = drawn(config, min(tokens, GATE))
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), block)
    with jax.default_matmul_precision("highest"):
        right = jax.jit(exact)(x.astype(jnp.float32), position)
    hold(name, out=(jax.jit(block)(x, position), right, NEAR))


def drawn(config: DecoderConfig, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Hidden states as a norm leaves them, and positions."""
    x = jax.random.normal(jax.random.key(1), (1, tokens, config.width), jnp.bfloat16)
    return x, jnp.arange(tokens, dtype=jnp.int32)[None]


def flops(block: Attention, config: DecoderConfig, tokens: int) -> float:
    """Of the forward pass: the weights' products, and half of the pairs of tokens."""
    arrays = jax.tree.leaves(nnx.state(block, nnx.Param))
    weights = sum(array.size for array in arrays if array.ndim > 1)
    sizes, heads = config.sizes(0), config.query_heads
    pair = 2 * heads * HEAD if sizes is None else sizes.products(heads, HEAD)
    return 2.0 * tokens * weights + 1.0 * pair * tokens**2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
