"""Causal attention over a whole prompt, for prefill and training; never S x S.

On a GPU with 16-bit inputs it is cuDNN's flash attention through
`jax.nn.dot_product_attention`; elsewhere a blocked XLA path with an online softmax.
Both take grouped queries as they are: keys and values are never repeated.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SEGMENTS = 16  # query segments at most; each sees only the keys up to its own end
SEGMENT = 128  # queries a segment at least
KEY_BLOCK = 2048  # keys whose logits exist at one time


def causal_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
) -> Float[Array, "B S N H"]:
    """softmax(q k^T / sqrt(H), keys up to the query) v, by slot order.

    Padding to the right needs no mask: a real query never looks at a later slot.
    """
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if half and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn"
        )
    if jax.default_backend() == "cpu":
        return _by_head(q, k, v)
    return _blocked(q, k, v)


def _by_head(q_BSNH, k_BSKH, v_BSKH):
    """One kv head of one row after another, so that a block stays in a CPU's cache.

    Twice as fast there as all at once (batch 8, 2048 tokens, 8 heads of 64, 2 cores).
    """
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    q_BKSGH = q_BSNH.reshape(B, S, K, N // K, H).swapaxes(1, 2)
    heads = (
        q_BKSGH.reshape(B * K, 1, S, N // K, H),
        k_BSKH.swapaxes(1, 2).reshape(B * K, 1, S, 1, H),
        v_BSKH.swapaxes(1, 2).reshape(B * K, 1, S, 1, H),
    )
    out = jax.lax.map(lambda head: _blocked(*head), heads)
    return out.reshape(B, K, S, N // K, H).swapaxes(1, 2).reshape(B, S, N, H)


def _blocked(q_BSNH, k_BSKH, v_BSKH):
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    q_BSKGH = q_BSNH.reshape(B, S, K, N // K, H)
    segment = max(SEGMENT, math.ceil(S / SEGMENTS))
    outputs = []
    for start in range(0, S, segment):
        end = min(start + segment, S)
        outputs.append(
            _segment(q_BSKGH[:, start:end], k_BSKH[:, :end], v_BSKH[:, :end], start)
        )
    return jnp.concatenate(outputs, axis=1).reshape(B, S, N, H)


def _segment(q_BTKGH, k_BSKH, v_BSKH, start):
    """Queries at slots start, start + 1, ... against the keys up to their end."""
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    queries = start + jnp.arange(T)
    running = (
        jnp.full((B, K, G, T), -jnp.inf, jnp.float32),
        jnp.zeros((B, K, G, T), jnp.float32),
        jnp.zeros((B, K, G, T, H), jnp.float32),
    )
    scaled = q_BTKGH * jnp.asarray(H**-0.5, q_BTKGH.dtype)
    for first in range(0, S, KEY_BLOCK):
        last = min(first + KEY_BLOCK, S)
        block = partial(_block, keys=first + jnp.arange(last - first))
        running = jax.checkpoint(block)(
            running, scaled, k_BSKH[:, first:last], v_BSKH[:, first:last], queries
        )
    _, total_BKGT, out_BKGTH = running
    out_BKGTH = out_BKGTH / total_BKGT[..., None]
    return out_BKGTH.transpose(0, 3, 1, 2, 4).astype(q_BTKGH.dtype)


def _block(running, q_BTKGH, k_BSKH, v_BSKH, queries, keys):
    """Folds one block of keys into (maximum, sum, weighted values)."""
    maximum, total, out = running
    z_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    causal_TS = keys[None, :] <= queries[:, None]
    z_BKGTS = jnp.where(causal_TS[None, None, None], z_BKGTS, -jnp.inf)
    higher = jnp.maximum(maximum, z_BKGTS.max(axis=-1))
    p_BKGTS = jnp.exp(z_BKGTS - higher[..., None])
    shrink = jnp.exp(maximum - higher)
    add_BKGTH = jnp.einsum(
        "BKGTS,BSKH->BKGTH",
        p_BKGTS.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=jnp.float32,
    )
    total = total * shrink + p_BKGTS.sum(axis=-1)
    return higher, total, out * shrink[..., None] + add_BKGTH
