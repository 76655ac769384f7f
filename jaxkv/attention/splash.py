"""Causal attention on a TPU: JAX's splash attention, a Pallas kernel with a gradient.

It reads each block of keys and values once for a block of queries, skips what lies
above the diagonal, and takes grouped queries as they are. On XLA's blocked path the
logits go through memory, and a program has a product for each pair of blocks, in each
layer: the step of a deep model takes hours to compile.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jaxtyping import Array, Float, Int

BLOCKS = (1024, 512, 256, 128)  # queries and keys of a block; the first that divides
LANES = 128


def takes(q: Float[Array, "B S N H"]) -> bool:
    """Whether the kernel takes such queries; XLA's path is for all others."""
    half = q.dtype == jnp.bfloat16
    return half and q.shape[1] % BLOCKS[-1] == 0 and q.shape[3] % LANES == 0


def splash_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment: Int[Array, "B S"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """As `causal_attention`; one kv head's queries are a call of the kernel.

    interpret: run it as plain operations, on a machine without a TPU.
    """
    B, S, N, H = q.shape
    K = k.shape[2]
    size = next(block for block in BLOCKS if S % block == 0)
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([_Causal((S, S))] * (N // K)),
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=min(size, 512),
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=min(size, 512),
            block_q_dq=size,
            block_kv_dq=size,
        ),
        interpret=interpret,
    )

    def row(q_KGSH, k_KSH, v_KSH, segment_S):
        own = None if segment_S is None else splash.SegmentIds(segment_S, segment_S)
        of_head = jax.vmap(lambda q, k, v: kernel(q, k, v, own))
        return of_head(q_KGSH, k_KSH, v_KSH)

    scaled = q * jnp.asarray(H**-0.5, q.dtype)
    q_BKGSH = scaled.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
    rows = q_BKGSH, k.swapaxes(1, 2), v.swapaxes(1, 2), segment
    out_BKGSH: Any = jax.vmap(row)(*rows)
    return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)


class _Causal(masks.CausalMask):
    """Says of a block off the diagonal by one number whether it is seen.

    The kernel's tables ask that of every block when they are made: of 131072 tokens
    their own mask would write out 16 GB.
    """

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries, keys = idx
        if keys.start > queries.stop - 1 or keys.stop - 1 <= queries.start:
            return np.full((1, 1), keys.stop - 1 <= queries.start)
        return super().__getitem__(idx)
