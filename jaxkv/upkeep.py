"""Upkeep: pages that new tokens were added to, cut back to what each head may hold.

attention -> score again -> evict, slot by slot. The spine of rows with when="step".
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.cache.pages import Pages, set_slots
from jaxkv.held import Held
from jaxkv.method import Method
from pallas_kernels.pack_pages import append_entries


def keep_up(
    pages: Pages,
    method: Method,
    position: Int[Array, "B T"],
    lse: Float[Array, "B J R T G"],
    logits: Float[Array, "B J pages T G P"],
    inverse_frequencies: Float[Array, " half"],
) -> Pages:
    """One layer's pages after T tokens were appended and looked at all slots.

    lse and logits are theirs. Each head drops its worst slots until it holds what it
    may; at most T of them, since it held no more than that before.
    """
    if "limit" not in pages.row_state:
        raise ValueError("These pages were not made by a row that evicts at each step.")
    received, newest = _attention(pages, position, lse, logits)
    limit = pages.row_state["limit"][:, :, 0]
    held = Held(
        position=_by_row(pages, pages.position, -1),
        received=_by_row(pages, received, 0.0),
        newest=_by_row(pages, newest, 0.0),
        state={n: _by_row(pages, x, 0.0) for n, x in pages.slot_state.items()},
        slots=limit,
    )
    scores, protected, state = method.score.again(held)
    stays = protected | method.select.spared(held.position, limit)
    for name, carried in state.items():
        pages = _carry(pages, name, carried)

    def drop_one(_, carry):
        pages, scores, stays, at = carry
        can = (at >= 0) & ~stays
        lowest = jnp.where(can, scores, jnp.inf).min(axis=-1, keepdims=True)
        # Of equal scores the lower position stays.
        among = jnp.where(can & (scores == lowest), at, -1)
        worst = jnp.argmax(among, axis=-1)
        drops = (pages.length[:, :, 0] > limit) & can.any(axis=-1)
        last = pages.length[:, :, 0] - 1
        scores, stays, at = (
            _moved(x, worst, last, drops, empty)
            for x, empty in ((scores, jnp.inf), (stays, True), (at, -1))
        )
        return _drop(pages, worst, last, drops), scores, stays, at

    carry = pages, scores, stays, held.position
    T = position.shape[1]
    if T == 1:
        carry = drop_one(0, carry)
    else:
        carry = jax.lax.fori_loop(0, T, drop_one, carry)
    return method.cache.again(carry[0], inverse_frequencies)


def _attention(pages, position, lse, logits):
    """[B, J, pages, P] attention that each slot got: of all real queries, of the last.

    The mean over a kv head's query heads.
    """
    owner = jnp.maximum(pages.owner, 0)[..., None, None]
    lse_BJpTG = jnp.take_along_axis(lse, owner, axis=2)
    lse_BJpTG = jnp.where(jnp.isfinite(lse_BJpTG), lse_BJpTG, 0.0)
    a_BJpTP = jnp.exp(logits - lse_BJpTG[..., None]).mean(axis=4)
    real_BT = position >= 0
    a_BJpTP = jnp.where(real_BT[:, None, None, :, None], a_BJpTP, 0.0)
    last_BT = real_BT & (position == position.max(axis=1, keepdims=True))
    newest = jnp.where(last_BT[:, None, None, :, None], a_BJpTP, 0.0)
    return a_BJpTP.sum(axis=3), newest.sum(axis=3)


def _by_row(
    pages: Pages,
    x: Float[Array, "B J pages P"] | Int[Array, "B J pages P"],
    empty: float | int,
) -> Float[Array, "B J R C"] | Int[Array, "B J R C"]:
    """What the slots hold, head by head in its own order; C = M * P."""
    B, J, _, R, M = pages.table.shape
    table = pages.table.reshape(B, J, R * M)
    found = jnp.take_along_axis(x, jnp.maximum(table, 0)[..., None], axis=2)
    found = found.reshape(B, J, R, M * pages.page)
    return jnp.where(_in_use(pages), found, jnp.asarray(empty, x.dtype))


def _in_use(pages: Pages) -> Bool[Array, "B J R C"]:
    C = pages.table.shape[-1] * pages.page
    return jnp.arange(C)[None, None, None] < pages.length[:, :, 0, :, None]


def _place(pages: Pages, slot: Int[Array, "B J R"]) -> tuple[Array, Array]:
    """(page, slot in it) of each head's slot number `slot`."""
    ordinal = jnp.maximum(slot, 0)[..., None] // pages.page
    page = jnp.take_along_axis(pages.table[:, :, 0], ordinal, axis=-1)
    return page, jnp.maximum(slot, 0)[..., None] % pages.page


def _carry(pages: Pages, name: str, carried: Float[Array, "B J R C"]) -> Pages:
    """Writes what slots carry back to their pages."""
    B, J, R, C = carried.shape
    slot = jnp.broadcast_to(jnp.arange(C)[None, None, None], carried.shape)
    page = jnp.repeat(pages.table[:, :, 0], pages.page, axis=-1)
    page = jnp.where(_in_use(pages), page, -1)
    state = set_slots(pages.slot_state[name], page, slot % pages.page, carried)
    return replace(pages, slot_state={**pages.slot_state, name: state})


def _moved(x, worst, last, drops, empty):
    """A head's last slot goes where the worst was, and leaves its own empty."""
    at = jnp.arange(x.shape[-1])[None, None, None]
    final = jnp.take_along_axis(x, jnp.maximum(last, 0)[..., None], axis=-1)
    x_after = jnp.where(at == worst[..., None], final, x)
    x_after = jnp.where(at == last[..., None], jnp.asarray(empty, x.dtype), x_after)
    return jnp.where(drops[..., None], x_after, x)


def _drop(
    pages: Pages,
    worst: Int[Array, "B J R"],
    last: Int[Array, "B J R"],
    drops: Bool[Array, "B J R"],
) -> Pages:
    """The same in the pages: one entry a head is copied, with all it carries."""
    from_page, from_slot = _place(pages, last)
    to_page, to_slot = _place(pages, worst)
    to_page = jnp.where(drops[..., None], to_page, -1)
    B, J = drops.shape[:2]
    b, j = jnp.arange(B)[:, None, None, None], jnp.arange(J)[None, :, None, None]

    def final(x):
        return x[b, j, jnp.maximum(from_page, 0), from_slot]

    moved = jax.tree.map(lambda x: final(x)[:, :, :, 0], pages.entry)  # [B, J, R, ...]
    k, v = jax.tree.map(lambda x: x[:, None], (moved.k, moved.v))
    entry, _ = append_entries(
        pages.entry,
        pages.position,
        k,
        v,
        jnp.zeros((B, 1), jnp.int32),
        to_page,
        to_slot,
    )
    position = set_slots(pages.position, to_page, to_slot, final(pages.position))
    emptied = jnp.where(drops[..., None], from_page, -1)
    return replace(
        pages,
        entry=entry,
        position=set_slots(position, emptied, from_slot, -1),
        length=pages.length - drops[:, :, None].astype(jnp.int32),
        slot_state={
            name: set_slots(x, to_page, to_slot, final(x))
            for name, x in pages.slot_state.items()
        },
    )
