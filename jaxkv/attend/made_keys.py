"""Queries read pages whose keys are made again at each reading, a few at a time.

For entries that hold the coordinates of keys before RoPE. With C the basis's columns,

    k_s = rope(entry_s C^T, the position of slot s)

and so no more rotated keys than CHUNK pages' ever exist.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.attention.rope import rotate
from jaxkv.cache.pages import Pages, one_layer
from pallas_kernels.layout import Entry
from pallas_kernels.ragged_decode import xla
from pallas_kernels.sharded import over_mesh

CHUNK = 64  # pages whose keys exist at one time


def attend_made(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"],
    layer: int = 0,
    *,
    basis: Float[Array, "H W"],
    inverse_frequencies: Float[np.ndarray, " half"],
    scale: float,
    value_dim: int,
    return_logits: bool = False,
) -> tuple[
    Float[Array, "B J R T G E"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of rotated queries over one layer's pages, by kv head.

    out, lse and logits as of `all_pages.attend_by_row` over latents: a value is the
    first `value_dim` numbers of an entry. layer: of the pool's span; logits are of
    pools of one layer only.
    """
    B, T, N, H = q.shape
    J, R = pages.table.shape[1], pages.table.shape[3]
    mine = one_layer(pages, layer)
    arrays = {
        "q": q.reshape(B, T, J, R, -1, H).transpose(0, 2, 3, 1, 4, 5),
        "entry": pages.entry,
        "owner": mine.owner,
        "position": pages.position,
        "bias": pages.slot_state.get("bias"),
        "q_position": position,
        "basis": basis,
    }
    kinds = dict.fromkeys(arrays, "BJ") | {"q_position": "B", "basis": ""}
    run = partial(
        _attend,
        frequencies=inverse_frequencies,
        scale=scale,
        value_dim=value_dim,
        return_logits=return_logits,
    )
    # Each device its own rows and heads: XLA cannot split a loop over them.
    out, lse, logits = over_mesh(lambda arrays: run(**arrays), arrays, kinds)
    return out, lse, logits if return_logits else None


def _attend(
    q,
    entry,
    owner,
    position,
    bias,
    q_position,
    basis,
    *,
    frequencies,
    scale,
    value_dim,
    return_logits,
):
    """Chunk after chunk of the pages, joined by log-sum-exp."""
    count, (P, G) = owner.shape[-1], (position.shape[-1], q.shape[4])
    size = min(CHUNK, count)

    def fold(running, chunk):
        begin = jnp.minimum(chunk * size, count - size)  # the last may reach back
        take = partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=size)
        fresh = begin + jnp.arange(size) >= chunk * size
        owner_BJp = jnp.where(fresh[None, None], take(owner, axis=2), -1)
        rows, stands = take(entry.k, axis=2), take(position, axis=2)
        out, lse, logits = xla.ragged_decode(
            q,
            Entry(_keys(rows, basis, stands, frequencies), rows[..., :value_dim]),
            owner_BJp,
            stands,
            q_position,
            scale=scale,
            bias=None if bias is None else take(bias, axis=2),
            return_logits=return_logits,
        )
        so_far, so_far_lse, known = running
        joined = xla.join(so_far, so_far_lse, out, lse)
        if logits is None:
            return *joined, known
        fresh = fresh[None, None, :, None, None, None]
        more = jnp.where(fresh, logits, take(known, axis=2))
        return *joined, jax.lax.dynamic_update_slice_in_dim(known, more, begin, axis=2)

    def step(running, chunk):
        read = (chunk * size <= live) & (live < (chunk + 1) * size)
        return jax.lax.cond(read.any(), fold, lambda x, _: x, running, chunk), None

    live = jnp.where(owner >= 0, jnp.arange(count)[None, None], -1)
    logits = (*owner.shape, q.shape[3], G, P) if return_logits else (*owner.shape[:2],)
    nothing = (
        jnp.zeros((*q.shape[:-1], value_dim), jnp.float32),
        jnp.full(q.shape[:-1], -jnp.inf, jnp.float32),
        jnp.full(logits, -jnp.inf, jnp.float32),
    )
    chunks = jnp.arange(-(-count // size))
    (out, lse, logits), _ = jax.lax.scan(step, nothing, chunks)
    return out.astype(q.dtype), lse, logits


def _keys(rows, basis, position, frequencies):
    """Rotated keys of some pages, in the entries' dtype."""
    k = jnp.einsum(
        "bjpsw,hw->bjpsh", rows, basis, preferred_element_type=jnp.float32
    ).astype(rows.dtype)
    P, H = k.shape[-2:]
    turned = rotate(k.reshape(-1, P, 1, H), position.reshape(-1, P), frequencies)
    return turned.reshape(k.shape)
