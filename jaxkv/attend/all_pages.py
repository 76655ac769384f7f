"""Every query reads all pages of its kv head."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.pages import Pages, one_layer
from pallas_kernels.layout import Entry
from pallas_kernels.ragged_decode import ragged_decode

CHUNK = 64  # pages of a wide pool that are read at one time


def attend(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"] | None = None,
    *,
    layer: int = 0,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attention of queries over one layer's pages: (out, lse), lse in fp32.

    position: true positions of the queries; each sees stored positions up to its own.
    By default the queries are the last T tokens appended. layer: of the pool's span.
    scale is 1 / sqrt(H) by default.
    """
    out, lse, _ = attend_by_row(
        q, pages, position, layer, scale=scale, soft_cap=soft_cap, window=window
    )
    B, T, N, H = q.shape
    out_BTNH = out.transpose(0, 3, 1, 2, 4, 5).reshape(B, T, N, H)
    return out_BTNH, lse.transpose(0, 3, 1, 2, 4).reshape(B, T, N)


def attend_by_row(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"] | None = None,
    layer: int = 0,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    return_logits: bool = False,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """As `attend`, by kv head, and the logits of every slot where asked for.

    Those are of pools of one layer only.
    """
    B, T, N, H = q.shape
    J, R = pages.table.shape[1], pages.table.shape[3]
    if position is None:
        position = pages.next_position[:, None] + jnp.arange(-T, 0)[None]
    q_BJRTGH = q.reshape(B, T, J, R, N // (J * R), H).transpose(0, 2, 3, 1, 4, 5)
    how = dict(
        scale=H**-0.5 if scale is None else scale, soft_cap=soft_cap, window=window
    )
    if pages.span > 1:
        assert not return_logits
        return *_in_chunks(q_BJRTGH, pages, position, layer, how), None
    return ragged_decode(
        q_BJRTGH,
        pages.entry,
        pages.owner,
        pages.position,
        position,
        bias=pages.slot_state.get("bias"),
        return_logits=return_logits,
        **how,
    )


def _in_chunks(q, pages: Pages, position, layer: int, how: dict):
    """Reads the layer's pages in a pool of many layers, CHUNK at a time.

    A layer's pages lie one after another, from the first of its first row on. Parts
    are joined by log-sum-exp; the loop ends with the last page that the layer owns.
    """
    mine = one_layer(pages, layer)
    count = (mine.owner >= 0).sum(axis=-1)
    first = jnp.argmax(mine.owner >= 0, axis=-1)
    size = min(CHUNK, pages.owner.shape[-1])
    bias = pages.slot_state.get("bias")

    def part(i):
        at = i * size + jnp.arange(size)[None, None]
        real = at < count[..., None]
        index = jnp.where(real, first[..., None] + at, 0)

        def take(x):
            return jnp.take_along_axis(
                x, index.reshape(*index.shape, *[1] * (x.ndim - 3)), axis=2
            )

        return ragged_decode(
            q,
            Entry(*map(take, pages.entry)),
            jnp.where(real, take(mine.owner), -1),
            take(pages.position),
            position,
            bias=None if bias is None else take(bias),
            **how,
        )[:2]

    def join(state):
        i, out, lse = state
        more, more_lse = part(i)
        total = jnp.logaddexp(lse, more_lse)
        safe = jnp.where(jnp.isfinite(total), total, 0.0)
        weigh = jnp.exp(lse - safe)[..., None]
        weigh_more = jnp.exp(more_lse - safe)[..., None]
        return i + 1, out * weigh + more.astype(jnp.float32) * weigh_more, total

    none = (
        jnp.int32(0),
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], -jnp.inf, jnp.float32),
    )
    chunks = -(-count.max() // size)
    _, out, lse = jax.lax.while_loop(lambda state: state[0] < chunks, join, none)
    return out.astype(q.dtype), lse
