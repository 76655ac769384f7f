"""pack_pages and append_entries through XLA: one gather, one scatter, no sort."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import layout
from pallas_kernels.layout import AnyEntry


def pack_pages(
    k: Float[Array, "B S J R H"],
    v: Float[Array, "B S J R H"] | None,
    token_position: Int[Array, "B S"],
    owner: Int[Array, "B J pages"],
    source: Int[Array, "B J pages P"],
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """Gathers token source[..., s] of each page's owner into slot s.

    A source of -1, or a page of no owner, leaves the slot empty: position -1, entry
    unspecified (finite). Returns (entry, position).
    """

    def one_pool(k_SRH, v_SRH, position_S, owner_p, source_pP):
        token = jnp.maximum(source_pP, 0)
        row = jnp.broadcast_to(jnp.maximum(owner_p, 0)[:, None], token.shape)
        entry = layout.gather(k_SRH, v_SRH, token, row)
        empty = (source_pP < 0) | (owner_p < 0)[:, None]
        return entry, jnp.where(empty, -1, position_S[token])

    over_groups = jax.vmap(one_pool, in_axes=(1, 1, None, 0, 0))
    return jax.vmap(over_groups)(k, v, token_position, owner, source)


def append_entries(
    entry: AnyEntry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"] | None,
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """Writes entry t of row r at (page, slot); in place when the pool is donated.

    A page outside the pool drops the entry. Returns (entry, position).
    """
    pages = position.shape[2]
    page = jnp.where((page >= 0) & (page < pages), page, pages)

    def one_pool(entry_p, position_p, k_TRH, v_TRH, new_T, page_RT, slot_RT):
        entry_p = layout.write(
            entry_p, page_RT, slot_RT, k_TRH.swapaxes(0, 1), _by_row(v_TRH)
        )
        new_RT = jnp.broadcast_to(new_T, page_RT.shape)
        return entry_p, position_p.at[page_RT, slot_RT].set(new_RT, mode="drop")

    over_groups = jax.vmap(one_pool, in_axes=(0, 0, 1, 1, None, 0, 0))
    return jax.vmap(over_groups)(entry, position, k, v, new_position, page, slot)


def _by_row(x_TRH):
    return None if x_TRH is None else x_TRH.swapaxes(0, 1)
