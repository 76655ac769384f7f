"""Every query reads all pages of its kv head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.pages import Pages, one_layer
from pallas_kernels.latent_decode import latent_decode
from pallas_kernels.ragged_decode import ragged_decode

CHUNK = 64  # pages of a wide pool that XLA reads at one time


def attend(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"] | None = None,
    *,
    layer: int = 0,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    value_dim: int | None = None,
) -> tuple[Float[Array, "B T N E"], Float[Array, "B T N"]]:
    """Attention of queries over one layer's pages: (out, lse), lse in fp32.

    position: true positions of the queries; each sees stored positions up to its own.
    By default the queries are the last T tokens appended. layer: of the pool's span.
    scale is 1 / sqrt(H) by default. value_dim: of a cache of latents, whose value is so
    many of an entry's first numbers.
    """
    out, lse, _ = attend_by_row(
        q,
        pages,
        position,
        layer,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        value_dim=value_dim,
    )
    return by_token(out), by_token(lse[..., None])[..., 0]


def attend_by_row(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"] | None = None,
    layer: int = 0,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    value_dim: int | None = None,
    return_logits: bool = False,
) -> tuple[
    Float[Array, "B J R T G E"],
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
    mine = one_layer(pages, layer)
    return _op(value_dim)(
        q_BJRTGH,
        pages.entry,
        mine.owner,
        pages.position,
        position,
        mine.table[:, :, 0],
        mine.length[:, :, 0],
        bias=pages.slot_state.get("bias"),
        return_logits=return_logits,
        chunk=CHUNK if pages.span > 1 else None,
        **how,
    )


def _op(value_dim: int | None) -> Callable[..., Any]:
    """The decode of pages with values of their own, or of latents."""
    if value_dim is None:
        return ragged_decode
    return partial(latent_decode, value_dim=value_dim)


def by_token(x: Float[Array, "B J R T G E"]) -> Float[Array, "B T N E"]:
    """What rows gave, token after token with all its heads."""
    B, _, _, T, _, E = x.shape
    return x.transpose(0, 3, 1, 2, 4, 5).reshape(B, T, -1, E)
