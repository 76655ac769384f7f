"""Causal attention over a whole prompt, for prefill and training; never S x S.

On a GPU with 16-bit inputs it is cuDNN's flash attention through
`jax.nn.dot_product_attention`, on a TPU with bfloat16 JAX's splash attention; elsewhere
a blocked XLA path with an online softmax. All take grouped queries as they are: keys
and values are never repeated.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.attention.splash import splash_attention, takes
from pallas_kernels.dispatch import platform
from pallas_kernels.sharded import over_mesh

PARTS = 16  # of the queries at most; each sees only the keys up to its own end
PART = 128  # queries a part at least
KEY_BLOCK = 1024  # keys whose logits exist at one time
LOWEST = -1e30  # finite: a block before its segment must not give a query NaN, and
# what it gives instead shrinks to 0 with the first key that the query does see


def causal_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K E"],
    segment: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S N E"]:
    """softmax(q k^T / sqrt(H), keys up to the query) v, by slot order.

    With segments, keys of the query's own segment only: documents packed in a row. On a
    GPU that goes through XLA. Padding to the right needs no mask: a real query
    never looks at a later slot.
    """
    return causal_attention_and_lse(q, k, v, segment)[0]


def causal_attention_and_lse(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K E"],
    segment: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B S N E"], Float[Array, "B S N"] | None]:
    """The same, and the logarithm of each softmax's sum, in fp32.

    None from cuDNN, which rounds it to 16 bits, and from splash attention, which has no
    gradient with it.
    """
    arrays = {"q": q, "k": k, "v": v, "segment": segment}
    kinds = dict.fromkeys(arrays, "B-J") | {"segment": "B"}
    # Each device its own rows and heads: XLA cannot split a loop over them.
    return over_mesh(lambda mine: _attend(**mine), arrays, kinds, ("B-J", "B-J"))


def _attend(q, k, v, segment):
    short = q.shape[-1] - v.shape[-1]  # kernels want values as long as keys
    if short >= 0 and segment is None and _flash(q):
        flash = partial(
            jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"
        )
        return flash(q, k, _longer(v, short))[..., : v.shape[-1]], None
    if short >= 0 and platform() == "tpu" and takes(q):
        out = splash_attention(q, k, _longer(v, short), segment)
        return out[..., : v.shape[-1]], None
    if platform() == "cpu":
        return _by_head(q, k, v, segment)
    return _blocked(q, k, v, segment)


def _longer(v_BSKE, more: int):
    return jnp.pad(v_BSKE, [(0, 0)] * 3 + [(0, more)]) if more else v_BSKE


def _flash(q_BSNH) -> bool:
    half = q_BSNH.dtype in (jnp.bfloat16, jnp.float16)
    return half and platform() == "gpu"


def _by_head(q_BSNH, k_BSKH, v_BSKH, segment_BS):
    """One kv head of one row after another, so that a block stays in a CPU's cache.

    Twice as fast there as all at once (batch 8, 2048 tokens, 8 heads of 64, 2 cores).
    """
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    q_BKSGH = q_BSNH.reshape(B, S, K, N // K, H).swapaxes(1, 2)
    heads = (
        q_BKSGH.reshape(B * K, 1, S, N // K, H),
        k_BSKH.swapaxes(1, 2).reshape(B * K, 1, S, 1, H),
        v_BSKH.swapaxes(1, 2).reshape(B * K, 1, S, 1, -1),
        None if segment_BS is None else jnp.repeat(segment_BS, K, axis=0)[:, None],
    )
    out, lse = jax.lax.map(lambda head: _blocked(*head), heads)
    out_BSKGE = out.reshape(B, K, S, N // K, -1).swapaxes(1, 2)
    lse_BSKG = lse.reshape(B, K, S, N // K).swapaxes(1, 2)
    return out_BSKGE.reshape(B, S, N, -1), lse_BSKG.reshape(B, S, N)


def _blocked(q_BSNH, k_BSKH, v_BSKH, segment_BS):
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    q_BKGSH = q_BSNH.reshape(B, S, K, G, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    size = max(PART, math.ceil(S / PARTS))
    parts = []
    for start in range(0, S, size):
        end = min(start + size, S)
        queries, keys = slice(start, end), slice(0, end)
        own = None if segment_BS is None else segment_BS[:, keys]
        parts.append(
            _part(
                q_BKGSH[:, :, :, queries],
                k_BKSH[:, :, keys],
                v_BKSH[:, :, keys],
                own,
                start,
            )
        )
    out_BKGSH, lse_BKGS = (jnp.concatenate(x, 3) for x in zip(*parts, strict=True))
    out_BSKGH, lse_BSKG = (jnp.moveaxis(x, 3, 1) for x in (out_BKGSH, lse_BKGS))
    return out_BSKGH.reshape(B, S, N, -1), lse_BSKG.reshape(B, S, N)


def _part(q_BKGTH, k_BKSH, v_BKSH, segment_BS, start):
    """Queries at slots start, start + 1, ... against the keys up to their end.

    A group's queries are the rows of one matrix, so that no product is transposed.
    """
    B, K, G, T, H = q_BKGTH.shape
    S = k_BKSH.shape[2]
    queries = jnp.tile(start + jnp.arange(T), G)
    running = (
        jnp.full((B, K, G * T), -jnp.inf, jnp.float32),
        jnp.zeros((B, K, G * T), jnp.float32),
        jnp.zeros((B, K, G * T, v_BKSH.shape[-1]), jnp.float32),
    )
    scaled = (q_BKGTH * jnp.asarray(H**-0.5, q_BKGTH.dtype)).reshape(B, K, G * T, H)
    own_BT = None if segment_BS is None else jnp.tile(segment_BS[:, start:], G)
    for first in range(0, S, KEY_BLOCK):
        last = min(first + KEY_BLOCK, S)
        block = partial(_block, queries=queries, keys=first + jnp.arange(last - first))
        segments = None if own_BT is None else (own_BT, segment_BS[:, first:last])
        running = jax.checkpoint(block)(
            running,
            scaled,
            k_BKSH[:, :, first:last],
            v_BKSH[:, :, first:last],
            segments,
        )
    maximum_BKT, total_BKT, out_BKTH = running
    out_BKTH = out_BKTH / total_BKT[..., None]
    lse_BKT = maximum_BKT + jnp.log(total_BKT)
    out_BKGTH = out_BKTH.reshape(B, K, G, T, -1).astype(q_BKGTH.dtype)
    return out_BKGTH, lse_BKT.reshape(B, K, G, T)


def _block(running, q_BKTH, k_BKSH, v_BKSH, segments, queries, keys):
    """Folds one block of keys into (maximum, sum, weighted values)."""
    maximum, total, out = running
    z_BKTS = jnp.einsum(
        "BKTH,BKSH->BKTS", q_BKTH, k_BKSH, preferred_element_type=jnp.float32
    )
    seen_BTS = (keys[None, :] <= queries[:, None])[None]
    if segments is not None:
        own_BT, of_keys_BS = segments
        seen_BTS = seen_BTS & (own_BT[:, :, None] == of_keys_BS[:, None])
    z_BKTS = jnp.where(seen_BTS[:, None], z_BKTS, LOWEST)
    higher = jnp.maximum(maximum, z_BKTS.max(axis=-1))
    p_BKTS = jnp.exp(z_BKTS - higher[..., None])
    shrink = jnp.exp(maximum - higher)
    add_BKTH = jnp.einsum(
        "BKTS,BKSH->BKTH",
        p_BKTS.astype(v_BKSH.dtype),
        v_BKSH,
        preferred_element_type=jnp.float32,
    )
    total = total * shrink + p_BKTS.sum(axis=-1)
    return higher, total, out * shrink[..., None] + add_BKTH
