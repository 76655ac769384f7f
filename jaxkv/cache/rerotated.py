"""Keys rotated to where they stand among what is kept."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.attention.rope import turn
from jaxkv.cache.pages import Pages
from jaxkv.kept import Kept
from jaxkv.parts import Store
from jaxkv.seen import Seen
from jaxkv.select.top_k import rank_of
from pallas_kernels.pack_pages import append_entries


@dataclass(frozen=True)
class Rerotated(Store):
    """A head's kept keys stand next to each other, right before what comes next.

        k'_r = rope(k_r, T - n + r - p_r),  p_0 < p_1 < .. the kept positions, r < n

    n tokens of a prompt of T are kept. Distances are those of a cache whose keys stand
    at 0 .. n - 1 and whose next token is at n (kvpress's KeyRerotation); counted from
    the end, heads may keep different numbers of tokens and share one next position.
    Stored positions stay the true ones, which tell what is kept.
    """

    @property
    def moves(self) -> bool:
        return True

    def __call__(self, seen: Seen, kept: Kept) -> Kept:
        held = rank_of(kept.order, kept.k.shape[1]) < kept.length[..., None]
        place = kept.length[..., None] - jnp.cumsum(held[..., ::-1], -1)[..., ::-1]
        target = seen.stored.sum(axis=1)[:, None, None] - kept.length[..., None] + place
        delta_BKS = jnp.where(held, target - kept.position[:, None], 0)
        return replace(kept, k=turn(kept.k, delta_BKS, seen.inverse_frequencies))


@dataclass(frozen=True)
class SinksFollow(Store):
    """The first `sinks` keys stand right before the oldest other token that is held.

    So all distances are those inside the cache: StreamingLLM's positions
    (arXiv 2309.17453), where the recent tokens are contiguous. When the oldest goes,
    the sinks move up by one, rotated anew from the keys that they were made with, which
    the pages carry ("sink_key" [.., sinks, H]), so that no rounding adds up.
    """

    sinks: int = 4

    @property
    def moves(self) -> bool:
        return True

    def __call__(self, seen: Seen, kept: Kept) -> Kept:
        held = rank_of(kept.order, kept.k.shape[1]) < kept.length[..., None]
        others = held & (kept.position[:, None] >= self.sinks)
        oldest = jnp.where(others, kept.position[:, None], jnp.iinfo(jnp.int32).max)
        ahead = jnp.where(others.any(-1), oldest.min(-1) - self.sinks, 0)
        is_sink = (kept.position < self.sinks)[:, None]
        delta_BKS = jnp.where(is_sink, ahead[..., None], 0)
        first = kept.k[:, : self.sinks].swapaxes(1, 2)  # position = slot in a prompt
        return replace(
            kept,
            k=turn(kept.k, delta_BKS, seen.inverse_frequencies),
            row_state={**kept.row_state, "sink_key": first},
        )

    def again(self, pages: Pages, inverse_frequencies: Float[Array, " half"]) -> Pages:
        held = jnp.arange(pages.table.shape[-1] * pages.page)[None, None, None]
        held = held < pages.length[:, :, 0, :, None]
        table = pages.table[:, :, 0]
        by_row = pages.position[
            jnp.arange(table.shape[0])[:, None, None, None],
            jnp.arange(table.shape[1])[None, :, None, None],
            jnp.maximum(table, 0),
        ].reshape(held.shape)
        others = held & (by_row >= self.sinks)
        oldest = jnp.where(others, by_row, jnp.iinfo(jnp.int32).max).min(axis=-1)
        ahead = jnp.where(others.any(axis=-1), oldest - self.sinks, 0)
        sink = jnp.arange(self.sinks)[None, None, None, :, None]
        found = held[:, :, :, None] & (by_row[:, :, :, None] == sink)
        slot = jnp.argmax(found, axis=-1)
        page = jnp.take_along_axis(table, slot // pages.page, axis=-1)
        page = jnp.where(found.any(axis=-1), page, -1)
        first = pages.row_state["sink_key"][:, :, 0]
        B, J, R, n, H = first.shape
        delta = jnp.broadcast_to(ahead[..., None], (B, J, R, n))
        k = turn(
            first.reshape(B * J, R, n, H).swapaxes(1, 2),
            delta.reshape(B * J, R, n),
            inverse_frequencies,
        )
        k = k.reshape(B, J, n, R, H).swapaxes(1, 2)
        b = jnp.arange(B)[:, None, None, None]
        j = jnp.arange(J)[None, :, None, None]
        v = pages.entry.value_at(b, j, jnp.maximum(page, 0), slot % pages.page)
        entry, _ = append_entries(
            pages.entry,
            pages.position,
            k,
            None if v is None else v.transpose(0, 3, 1, 2, 4),
            jnp.broadcast_to(jnp.arange(n)[None], (B, n)),
            page,
            slot % pages.page,
        )
        return replace(pages, entry=entry)
