"""Streaming attention over a whole prompt: sinks and the recent tokens; never S x S.

What a head sees that keeps only its first and its latest tokens, at every query at once
(StreamingLLM, arXiv 2309.17453). For training; decoding reads a cache instead.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.sharded import over_mesh

BLOCK = 128  # queries of a block at least


def streaming_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    sinks: int,
    recent: int,
) -> Float[Array, "B S N H"]:
    """softmax(q k^T / sqrt(H), keys j <= i with j < sinks or i - j < recent) v.

    By slot order; the query itself is one of the `recent`. A block of queries reads the
    sinks, its own keys and those of the block before: the cost is S (sinks + recent).
    Scores and sums are fp32, the result has q's dtype. It has a gradient, for which
    each block is computed again.
    """
    arrays = {"q": q, "k": k, "v": v}
    run = partial(_stream, sinks=sinks, recent=recent)
    kinds = dict.fromkeys(arrays, "B-J")
    return over_mesh(lambda mine: run(**mine), arrays, kinds, "B-J")


def _stream(q, k, v, sinks, recent):
    B, S, N, H = q.shape
    K = k.shape[2]
    size = max(recent, BLOCK)  # so that one block before is enough
    count = -(-S // size)
    q_XBTKGH = _blocks(q.reshape(B, S, K, N // K, H), size)
    k_XBTKH, v_XBTKH = _blocks(k, size), _blocks(v, size)
    first = k[:, :sinks], v[:, :sinks]

    @jax.checkpoint
    def one(block, first):
        start, q_BTKGH, k_BSKH, v_BSKH = block
        # [the block before, the block itself], then the sinks
        key_S = start - size + jnp.arange(2 * size)
        sink_S = jnp.arange(first[0].shape[1])
        query_T1 = (start + jnp.arange(size))[:, None]
        ago_TS = query_T1 - key_S[None]
        near_TS = (ago_TS >= 0) & (ago_TS < recent) & (key_S >= sinks)[None]
        seen_TS = jnp.concatenate([near_TS, sink_S[None] <= query_T1], axis=1)
        return _attend(
            q_BTKGH,
            jnp.concatenate([k_BSKH, first[0]], axis=1),
            jnp.concatenate([v_BSKH, first[1]], axis=1),
            seen_TS,
        )

    pairs = (_with_previous(k_XBTKH), _with_previous(v_XBTKH))
    starts = jnp.arange(count, dtype=jnp.int32) * size
    out = jax.lax.map(lambda block: one(block, first), (starts, q_XBTKGH, *pairs))
    return out.swapaxes(0, 1).reshape(B, count * size, N, H)[:, :S]


def _attend(q_BTKGH, k_BSKH, v_BSKH, seen_TS) -> Float[Array, "B T K G H"]:
    z_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    z_BKGTS = z_BKGTS * q_BTKGH.shape[-1] ** -0.5
    # Without a sink the padding's queries past `recent` see nothing: a finite bottom.
    z_BKGTS = jnp.where(seen_TS[None, None, None], z_BKGTS, -1e30)
    p_BKGTS = jax.nn.softmax(z_BKGTS, axis=-1)
    out = jnp.einsum(
        "BKGTS,BSKH->BTKGH",
        p_BKGTS.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=jnp.float32,
    )
    return out.astype(q_BTKGH.dtype)


def _blocks(x: Array, size: int) -> Array:
    """[B, S, ...] to [X, B, size, ...], padded to the right."""
    B, S = x.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, -S % size)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(B, -1, size, *x.shape[2:]).swapaxes(0, 1)


def _with_previous(x_XBTKH: Float[Array, "X B T K H"]) -> Float[Array, "X B S K H"]:
    """Each block behind the one before it; before the first one are zeros."""
    before = jnp.concatenate([jnp.zeros_like(x_XBTKH[:1]), x_XBTKH[:-1]])
    return jnp.concatenate([before, x_XBTKH], axis=2)
