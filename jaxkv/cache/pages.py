"""Pages: a cache as a pool of pages, each of one kv head of one layer of one sequence.

The number of pages is static; how they are dealt to heads is data. So per-head budgets
cost what they keep, under static shapes, at any batch size. Pages for tokens yet to
come are dealt when the prompt is packed: decoding allocates nothing.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxkv.kept import TRAIL, Kept
from pallas_kernels.layout import AnyEntry
from pallas_kernels.pack_pages import append_entries, pack_pages


@dataclass(frozen=True)
class PoolShape:
    """The static sizes of a pool: `groups` J, and what each head may hold.

    total: slots that a group's rows hold together after compression; most: the most
    that one of them can hold; headroom: slots reserved in every row for tokens yet to
    come.
    """

    groups: int
    rows: int  # kv heads of a group, times the layers of the span
    total: int
    most: int
    headroom: int
    page: int  # P
    span: int = 1  # layers that share the pool

    @property
    def pages(self) -> int:
        """The rows' slots in pages, each row rounded up to whole pages."""
        return (self.total + self.rows * self.headroom) // self.page + self.rows

    @property
    def table(self) -> int:
        """M, pages of the longest row that can be."""
        longest = -(-(self.most + self.headroom) // self.page)
        return min(self.pages, longest)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """A pool for every sequence and head group; a pytree, donated at every step."""

    entry: AnyEntry  # keys and values; the tiles belong to pallas_kernels.layout
    position: Int[Array, "B J pages P"]  # the token's true position; -1 = empty
    owner: Int[Array, "B J pages"]  # span row, layer * K / J + kv head; -1 = free
    table: Int[Array, "B J span rows M"]  # a head's pages in order; -1 = none
    length: Int[Array, "B J span rows"]  # slots in use
    next_position: Int[Array, " B"]  # where the sequence goes on
    overflow: Bool[Array, "B J span rows"]  # sticky: an entry found no slot
    slot_state: dict[str, Array] = field(default_factory=dict)  # [B, J, pages, P, ...]
    row_state: dict[str, Array] = field(default_factory=dict)  # [B, J, span, rows, ...]

    @property
    def page(self) -> int:
        """P, slots in a page."""
        return self.position.shape[-1]

    @property
    def span(self) -> int:
        """Layers that share the pool."""
        return self.table.shape[2]

    @property
    def capacity(self) -> Int[np.ndarray, "B J span rows"]:
        """Slots each head's pages can hold."""
        dealt = np.asarray(self.table) >= 0
        return dealt.sum(axis=-1, dtype=np.int32) * self.page

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, used and reserved."""
        return sum(a.nbytes for a in jax.tree.leaves(self))

    @property
    def headroom_bytes(self) -> int:
        """Bytes of pages that hold no slot yet."""
        used = int((-(-np.asarray(self.length) // self.page)).sum())
        pages = self.owner.size
        per_page = self.entry, self.position, self.owner, self.slot_state
        free = pages - used
        return sum(a.nbytes // pages * free for a in jax.tree.leaves(per_page))

    @property
    def cache_bytes(self) -> int:
        """Bytes the cache holds: pages in use, tables, lengths and state."""
        return self.nbytes - self.headroom_bytes


def deal(
    length: Int[Array, "B J rows"], shape: PoolShape
) -> tuple[Int[Array, "B J pages"], Int[Array, "B J pages"], Int[Array, "B J rows M"]]:
    """Deals a pool's pages to its rows in order.

    Each row gets ceil((length + headroom) / P) pages. Returns each page's owner (-1 =
    free) and its ordinal in that row, and each row's table of pages.
    """
    need = -(-(length + shape.headroom) // shape.page)
    end = jnp.cumsum(need, axis=-1)
    start = end - need
    page = jnp.arange(shape.pages)
    owner = (page[None, None, :, None] >= end[:, :, None]).sum(axis=-1)
    free = owner >= shape.rows
    first = jnp.take_along_axis(start, jnp.minimum(owner, shape.rows - 1), axis=-1)
    ordinal = jnp.where(free, 0, page[None, None] - first)
    m = jnp.arange(shape.table)[None, None, None]
    table = start[..., None] + m
    dealt = (m < need[..., None]) & (table < shape.pages)
    return jnp.where(free, -1, owner), ordinal, jnp.where(dealt, table, -1)


def pack(kept: Kept, next_position: Int[Array, " B"], shape: PoolShape) -> Pages:
    """Packs each head's kept slots, best first, into a new pool.

    The K heads of `kept` are [J, span, rows] of the pool, in that order.
    """
    B, S = kept.k.shape[:2]
    J, R, P = shape.groups, shape.rows, shape.page
    length_BJR = kept.length.reshape(B, J, R)
    order_BJRS = kept.order.reshape(B, J, R, -1)
    owner, ordinal, table = deal(length_BJR, shape)
    row = jnp.maximum(owner, 0)
    rank_BJpP = ordinal[..., None] * P + jnp.arange(P)[None, None, None]
    here = jnp.take_along_axis(length_BJR, row, axis=-1)[..., None]
    filled = (owner >= 0)[..., None] & (rank_BJpP < here)
    flat = row[..., None] * order_BJRS.shape[-1] + jnp.where(filled, rank_BJpP, 0)
    source = jnp.take_along_axis(
        order_BJRS.reshape(B, J, -1), flat.reshape(B, J, -1), axis=-1
    ).reshape(flat.shape)
    k, v = jax.tree.map(lambda x: x.reshape(B, S, J, R, -1), (kept.k, kept.v))
    entry, stored = pack_pages(
        k,
        v,
        kept.position,
        owner,
        jnp.where(filled, source, -1),
    )

    def by_slot(state_BKS):
        """[B, K, S] to [B, J, pages, P], 0 in empty slots."""
        at = (row[..., None] * S + source).reshape(B, J, -1)
        found = jnp.take_along_axis(state_BKS.reshape(B, J, -1), at, axis=-1)
        return jnp.where(filled, found.reshape(source.shape), 0)

    by_row = (B, J, shape.span, R // shape.span)
    return Pages(
        entry=entry,
        position=stored,
        owner=owner,
        table=table.reshape(*by_row, -1),
        length=length_BJR.reshape(by_row),
        next_position=next_position,
        overflow=jnp.zeros(by_row, bool),
        slot_state={name: by_slot(state) for name, state in kept.slot_state.items()},
        row_state={
            name: state.reshape(*by_row, *state.shape[2:])
            for name, state in kept.row_state.items()
        },
    )


def append(
    pages: Pages,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"] | None,
    position: Int[Array, "B T"],
    layer: int = 0,
    trail: Float[Array, "B K ..."] | None = None,
) -> Pages:
    """Appends new tokens to every head of one layer of the span; latents have no v.

    A position of -1 is padding and is not stored. What slots carry starts at 0. A head
    whose pages are full keeps what it has and sets its overflow flag. The sequence goes
    on after the last layer of the span has been appended to. trail: after the tokens,
    where the layer has one.
    """
    B, T = k.shape[:2]
    J, R = pages.table.shape[1], pages.table.shape[3]
    k, v = jax.tree.map(lambda x: x.reshape(B, T, J, R, -1), (k, v))
    real_BT = position >= 0
    rank_BT = jnp.cumsum(real_BT, axis=1) - 1
    slot_BJRT = pages.length[:, :, layer, :, None] + rank_BT[:, None, None]
    ordinal = slot_BJRT // pages.page
    table = pages.table[:, :, layer]
    fits = ordinal < table.shape[-1]
    page = jnp.take_along_axis(
        table, jnp.minimum(ordinal, table.shape[-1] - 1), axis=-1
    )
    fits = fits & (page >= 0)
    real = real_BT[:, None, None]
    page = jnp.where(fits & real, page, -1)
    slot = slot_BJRT % pages.page
    entry, stored = append_entries(
        pages.entry,
        pages.position,
        k,
        v,
        position,
        page,
        slot,
    )
    added = (fits & real).sum(axis=-1)
    lost = (real & ~fits).any(axis=-1)
    went = real_BT.sum(axis=1) if layer == pages.span - 1 else 0
    return replace(
        pages,
        entry=entry,
        position=stored,
        length=pages.length + _of_layer(added, layer, pages.span),
        overflow=pages.overflow | _of_layer(lost, layer, pages.span),
        next_position=pages.next_position + went,
        slot_state={
            name: set_slots(state, page, slot, 0)
            for name, state in pages.slot_state.items()
        },
        row_state=_with_trail(pages, layer, trail),
    )


def trail_of(pages: Pages, layer: int) -> Float[Array, "B K ..."] | None:
    """The trail of one layer of the span; None where it has none."""
    if TRAIL not in pages.row_state:
        return None
    trail = pages.row_state[TRAIL][:, :, layer]
    return trail.reshape(trail.shape[0], -1, *trail.shape[3:])


def _with_trail(pages: Pages, layer: int, trail: Array | None) -> dict[str, Array]:
    if trail is None:
        return pages.row_state
    every = pages.row_state[TRAIL]
    mine = trail.reshape(every[:, :, layer].shape).astype(every.dtype)
    return {**pages.row_state, TRAIL: every.at[:, :, layer].set(mine)}


def _of_layer(value: Shaped[Array, "B J rows"], layer: int, span: int):
    """[B, J, span, rows], nothing in the other layers of the span."""
    pad = [(0, 0), (0, 0), (layer, span - 1 - layer), (0, 0)]
    return jnp.pad(value[:, :, None], pad)


def set_slots(
    state: Shaped[Array, "B J pages P"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
    value: Shaped[Array, "B J R T"] | int,
) -> Shaped[Array, "B J pages P"]:
    """Sets (page, slot) of each pool; a page of -1 sets nothing."""
    B, J, pages, _ = state.shape
    page = jnp.where(page >= 0, page, pages)
    b = jnp.arange(B)[:, None, None, None]
    j = jnp.arange(J)[None, :, None, None]
    return state.at[b, j, page, slot].set(value, mode="drop")


def one_layer(pages: Pages, layer: int) -> Pages:
    """A view of one layer of a pool: the other layers' pages are nobody's."""
    if pages.span == 1:
        return pages
    R = pages.table.shape[3]
    mine = pages.owner // R == layer
    here = slice(layer, layer + 1)
    return replace(
        pages,
        owner=jnp.where((pages.owner >= 0) & mine, pages.owner - layer * R, -1),
        table=pages.table[:, :, here],
        length=pages.length[:, :, here],
        overflow=pages.overflow[:, :, here],
        row_state={name: x[:, :, here] for name, x in pages.row_state.items()},
    )
