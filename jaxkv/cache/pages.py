"""Pages: a cache as a pool of pages, each of one kv head of one layer of one sequence.

The number of pages is static; how they are dealt to heads is data. So per-head budgets
cost what they keep, under static shapes, at any batch size. Pages for tokens yet to
come are dealt when the prompt is packed: decoding allocates nothing.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.layout import Entry
from pallas_kernels.pack_pages import append_entries, pack_pages


@dataclass(frozen=True)
class PoolShape:
    """The static sizes of a pool: `groups` J, and what each head may hold.

    slots: slots a head holds on average after compression; most: the most that one head
    can hold; headroom: slots reserved in every head for tokens yet to come.
    """

    groups: int
    rows: int  # kv heads of a group (times the layers of the span, one here)
    slots: int
    most: int
    headroom: int
    page: int  # P

    @property
    def pages(self) -> int:
        """The rows' slots in pages, each row rounded up to whole pages."""
        return self.rows * (self.slots + self.headroom) // self.page + self.rows

    @property
    def table(self) -> int:
        """M, pages of the longest row that can be."""
        longest = -(-(self.most + self.headroom) // self.page)
        return min(self.pages, longest)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """A pool for every sequence and head group; a pytree, donated at every step."""

    entry: Entry  # keys and values; the tiles belong to pallas_kernels.layout
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
    def capacity(self) -> Int[Array, "B J span rows"]:
        """Slots each head's pages can hold."""
        return (self.table >= 0).sum(axis=-1) * self.page

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, used and reserved."""
        return sum(a.nbytes for a in jax.tree.leaves(self))

    @property
    def headroom_bytes(self) -> int:
        """Bytes of pages that hold no slot yet."""
        used = int((-(-self.length // self.page)).sum())
        pages = self.owner.size
        per_page = (*self.entry, self.position, self.owner, *self.slot_state.values())
        return sum(a.nbytes // pages * (pages - used) for a in per_page)

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


def pack(
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    position: Int[Array, "B S"],
    order: Int[Array, "B K S"],
    length: Int[Array, "B K"],
    next_position: Int[Array, " B"],
    shape: PoolShape,
) -> Pages:
    """Packs the first `length` slots of each head's `order` into a new pool."""
    B, S, K, H = k.shape
    J, R, P = shape.groups, shape.rows, shape.page
    length_BJR = length.reshape(B, J, R)
    order_BJRS = order.reshape(B, J, R, -1)
    owner, ordinal, table = deal(length_BJR, shape)
    row = jnp.maximum(owner, 0)
    rank_BJpP = ordinal[..., None] * P + jnp.arange(P)[None, None, None]
    here = jnp.take_along_axis(length_BJR, row, axis=-1)[..., None]
    filled = (owner >= 0)[..., None] & (rank_BJpP < here)
    flat = row[..., None] * order_BJRS.shape[-1] + jnp.where(filled, rank_BJpP, 0)
    source = jnp.take_along_axis(
        order_BJRS.reshape(B, J, -1), flat.reshape(B, J, -1), axis=-1
    ).reshape(flat.shape)
    entry, stored = pack_pages(
        k.reshape(B, S, J, R, H),
        v.reshape(B, S, J, R, H),
        position,
        owner,
        jnp.where(filled, source, -1),
    )
    return Pages(
        entry=entry,
        position=stored,
        owner=owner,
        table=table[:, :, None],
        length=length_BJR[:, :, None],
        next_position=next_position,
        overflow=jnp.zeros((B, J, 1, R), bool),
    )


def append(
    pages: Pages,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    position: Int[Array, "B T"],
) -> Pages:
    """Appends new tokens to every head; a position of -1 is padding and is not stored.

    A head whose pages are full keeps what it has and sets its overflow flag.
    """
    B, T, K, H = k.shape
    J, R = pages.table.shape[1], pages.table.shape[3]
    real_BT = position >= 0
    rank_BT = jnp.cumsum(real_BT, axis=1) - 1
    slot_BJRT = pages.length[:, :, 0, :, None] + rank_BT[:, None, None]
    ordinal = slot_BJRT // pages.page
    table = pages.table[:, :, 0]
    fits = ordinal < table.shape[-1]
    page = jnp.take_along_axis(
        table, jnp.minimum(ordinal, table.shape[-1] - 1), axis=-1
    )
    fits = fits & (page >= 0)
    real = real_BT[:, None, None]
    entry, stored = append_entries(
        pages.entry,
        pages.position,
        k.reshape(B, T, J, R, H),
        v.reshape(B, T, J, R, H),
        position,
        jnp.where(fits & real, page, -1),
        slot_BJRT % pages.page,
    )
    return replace(
        pages,
        entry=entry,
        position=stored,
        length=pages.length + (fits & real).sum(axis=-1)[:, :, None],
        overflow=pages.overflow | (real & ~fits).any(axis=-1)[:, :, None],
        next_position=pages.next_position + real_BT.sum(axis=1),
    )
