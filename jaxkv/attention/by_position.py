"""Attention of queries over keys in any order, by their positions; never S x S.

For tokens that run against a whole prompt's keys and values and their own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import any_live, blocks, map_rows
from pallas_kernels.dispatch import platform
from pallas_kernels.sharded import over_mesh

BLOCKS = {"cpu": (256, 1024)}  # queries and keys whose logits exist at one time
ELSEWHERE = (512, 2048)
LOWEST = -1e30  # finite: a query that has seen no key yet must not give NaN


def attend_by_position(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K E"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, " B #K S"],
) -> tuple[Float[Array, "B T N E"], Float[Array, "B T N"]]:
    """softmax(q k^T / sqrt(H)) v over the keys with 0 <= k_position <= q_position, lse.

    Heads may have keys at other positions, or all the same. Grouped queries; scores and
    sums in fp32, the result in q's dtype, and the log of the softmax's sum in fp32. A
    query that sees no key gets 0, and -inf.
    """
    arrays = dict(q=q, k=k, v=v, q_position=q_position, k_position=k_position)
    kinds = dict.fromkeys(("q", "k", "v"), "B-J") | {"q_position": "B"}
    kinds["k_position"] = "BJ" if k_position.shape[1] == k.shape[2] else "B"
    # Each device its own rows and heads: XLA cannot split a loop over them.
    return over_mesh(lambda mine: _by_row(**mine), arrays, kinds, ("B-J", "B-J"))


def _by_row(q, k, v, q_position, k_position):
    B, T, N, H = q.shape
    K = k.shape[2]
    rows = (
        q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4),
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        q_position,
        k_position,
    )
    # On a CPU head by head, so that a block stays in its cache.
    by_row = _by_head if platform() == "cpu" else _attend
    some, many = BLOCKS.get(platform(), ELSEWHERE)
    logits = N * min(T, some) * min(k.shape[1], many)
    out_BKGTH, lse_BKGT = map_rows(lambda row: by_row(*row), rows, logits)
    out = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)
    return out.astype(q.dtype), lse_BKGT.transpose(0, 3, 1, 2).reshape(B, T, N)


def _by_head(q_KGTH, k_KSH, v_KSH, q_T, k_KS):
    def one(head):
        q_KGTH, k_KSH, v_KSH, k_KS = (x[None] for x in head)
        return _attend(q_KGTH, k_KSH, v_KSH, q_T, k_KS)

    k_KS = jnp.broadcast_to(k_KS, k_KSH.shape[:2])
    out, lse = jax.lax.map(one, (q_KGTH, k_KSH, v_KSH, k_KS))
    return out[:, 0], lse[:, 0]


def _attend(q_KGTH, k_KSH, v_KSH, q_T, k_KS):
    """One row: a block of queries after another."""
    K, G, T, H = q_KGTH.shape
    E = v_KSH.shape[-1]
    scaled = q_KGTH * jnp.asarray(H**-0.5, q_KGTH.dtype)
    some, many = BLOCKS.get(platform(), ELSEWHERE)
    keys = (
        blocks(k_KSH, 1, many, 0),
        blocks(v_KSH, 1, many, 0),
        blocks(k_KS, 1, many, -1),
    )
    queries = blocks(scaled, 2, some, 0), blocks(q_T, 0, some, -1)
    out, lse = jax.lax.map(lambda block: _block(block[0], block[1], keys), queries)
    out_KGTH = jnp.moveaxis(out, 0, 2).reshape(K, G, -1, E)
    return out_KGTH[:, :, :T], jnp.moveaxis(lse, 0, 2).reshape(K, G, -1)[..., :T]


def _block(q_KGTH, q_T, keys):
    """One block of queries over the blocks of keys, with an online softmax.

    A group's queries are the rows of one matrix, so that no product is transposed.
    """
    K, G, T, H = q_KGTH.shape
    q_KQH = q_KGTH.reshape(K, G * T, H)
    position_Q = jnp.tile(q_T, G)

    def fold(running, k_KSH, v_KSH, k_KS):
        highest_KQ, total_KQ, out_KQH = running
        z_KQS = jnp.einsum(
            "KQH,KSH->KQS", q_KQH, k_KSH, preferred_element_type=jnp.float32
        )
        k_K1S = k_KS[:, None]
        sees_KQS = (k_K1S >= 0) & (k_K1S <= position_Q[None, :, None])
        z_KQS = jnp.where(sees_KQS, z_KQS, LOWEST)
        higher_KQ = jnp.maximum(highest_KQ, z_KQS.max(axis=-1))
        p_KQS = jnp.where(sees_KQS, jnp.exp(z_KQS - higher_KQ[..., None]), 0.0)
        shrink_KQ = jnp.exp(highest_KQ - higher_KQ)
        add_KQH = jnp.einsum(
            "KQS,KSH->KQH",
            p_KQS.astype(v_KSH.dtype),
            v_KSH,
            preferred_element_type=jnp.float32,
        )
        total_KQ = total_KQ * shrink_KQ + p_KQS.sum(axis=-1)
        return higher_KQ, total_KQ, out_KQH * shrink_KQ[..., None] + add_KQH

    def step(running, block):
        some = any_live(q_T, block[2])
        return jax.lax.cond(some, fold, lambda x, *_: x, running, *block), None

    nothing = (
        jnp.full((K, G * T), LOWEST),
        jnp.zeros((K, G * T)),
        jnp.zeros((K, G * T, keys[1].shape[-1])),
    )
    (highest_KQ, total_KQ, out_KQH), _ = jax.lax.scan(step, nothing, keys)
    some_KQ = total_KQ > 0
    total_KQ = jnp.where(some_KQ, total_KQ, 1.0)
    lse_KQ = jnp.where(some_KQ, highest_KQ + jnp.log(total_KQ), -jnp.inf)
    out_KQH = out_KQH / total_KQ[..., None]
    return out_KQH.reshape(K, G, T, -1), lse_KQ.reshape(K, G, T)
