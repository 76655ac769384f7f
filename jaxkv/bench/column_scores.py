"""column_scores over a long prompt: its last 32 queries, or all of them.

The peer is the prompt's own attention in that layer: a causal forward pass of cuDNN
through `jax.nn.dot_product_attention`, for the same queries or, beside the last 32, for
all. So the ratio says what scoring adds to a prefill.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from jaxkv.bench import row
from jaxkv.bench.floor import Speed
from jaxkv.bench.row import Row
from jaxkv.bench.timing import seconds_a_call
from pallas_kernels.column_scores import column_scores, reference, xla

N, K, H = 32, 8, 128
TOKENS, SMALL = 32768, 1024
FEW = 32
CLOSE = 2e-5  # of the largest score; products of bfloat16 are exact in fp32

score = partial(column_scores, scale=H**-0.5)
through_xla = partial(xla.column_scores, scale=H**-0.5)


def measure_column_scores(speed: Speed, dtype, peer: bool) -> Iterator[Row]:
    """The last queries, all with a given lse, and all with their own."""
    tokens = SMALL if row.cpu() else TOKENS
    check(dtype)
    q = _drawn(0, tokens, N, dtype)
    size = tokens * K * H * jnp.dtype(dtype).itemsize
    keys = [_drawn(100 + i, tokens, K, dtype) for i in range(row.turns(size))]
    at = jnp.arange(tokens, dtype=jnp.int32)[None]
    products = N * H * tokens * tokens  # of one pass over a causal half
    forward = _forward(speed, q, keys[0], products) if peer else None
    lse = jax.jit(score)(q, keys[0], at, at)[1]
    last = slice(tokens - FEW, None)
    cases = {
        f"last {FEW} queries": (
            q[:, last],
            at[:, last],
            None,
            2 * FEW * N * H * tokens,
        ),
        "all queries, lse given": (q, at, lse, products),
        "all queries, own lse": (q, at, None, 2 * products),
    }
    for name, (q, q_at, lse, flops) in cases.items():
        few = q.shape[1] < tokens
        layers = keys if few else keys[:1]
        floor = speed.floor(size, flops)
        found, other = (
            jax.jit(f)(q, keys[0], q_at, at, lse=lse) for f in (score, through_xla)
        )
        _hold(found, other)

        def step(path, scores, k, q=q, q_at=q_at, lse=lse):
            q_at = row.after(scores[0, 0, 0], q_at)
            return path(q, k, q_at, at, lse=lse)[0]

        def seconds(path, likely, step=step, start=found[0], layers=layers):
            rounds = row.rounds(likely, len(layers))
            return seconds_a_call(partial(step, path), start, layers, rounds)

        yield Row(
            op="column_scores",
            case=name,
            batch=1,
            slots=tokens,
            seconds=seconds(score, floor),
            bytes=size,
            flops=flops,
            floor=floor,
            xla=seconds(through_xla, row.SLOWER * floor),
            peer=forward,
        )


def check(dtype) -> None:
    """Holds the op to its definition at a size that the definition can take.

    Raises:
      FloatingPointError: they differ.
    """
    at = jnp.arange(700, dtype=jnp.int32)[None]
    arrays = _drawn(0, 300, N, dtype), _drawn(1, 700, K, dtype), at[:, -300:], at
    with jax.default_matmul_precision("highest"):
        theirs = jax.jit(partial(reference.column_scores, scale=H**-0.5))(*arrays)
    _hold(jax.jit(score)(*arrays), theirs)


def _forward(speed: Speed, q, k, products: int) -> float:
    """Seconds of the layer's own attention.

    Raises:
      ValueError: there is no cuDNN to time.
    """
    if jax.default_backend() != "gpu" or q.dtype == jnp.float32:
        raise ValueError(
            "The peer of column_scores is cuDNN's causal attention, which needs a GPU "
            "and --dtype bfloat16. Leave out --peer."
        )

    def step(out, k):
        """What comes out are the next queries."""
        return jax.nn.dot_product_attention(
            out, k, k, is_causal=True, implementation="cudnn"
        )

    rounds = row.rounds(speed.floor(0, 2 * products), 1)
    return seconds_a_call(step, q, [k], rounds)


def _drawn(seed: int, tokens: int, heads: int, dtype):
    """Random queries or keys of one sequence."""
    return jax.random.normal(jax.random.key(seed), (1, tokens, heads, H), dtype)


def _hold(ours, theirs) -> None:
    (scores, lse), (other, other_lse) = ours, theirs
    row.hold(
        "column_scores", scores=(scores, other, CLOSE), lse=(lse, other_lse, CLOSE)
    )
