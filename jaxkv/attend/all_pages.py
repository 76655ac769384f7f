"""Every query reads all pages of its kv head."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.pages import Pages
from pallas_kernels.ragged_decode import ragged_decode


def attend(
    q: Float[Array, "B T N H"],
    pages: Pages,
    position: Int[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attention of queries over one layer's pages: (out, lse), lse in fp32.

    position: true positions of the queries; each sees stored positions up to its own.
    By default the queries are the last T tokens appended. scale is 1 / sqrt(H) by
    default.
    """
    B, T, N, H = q.shape
    J, R = pages.table.shape[1], pages.table.shape[3]
    if position is None:
        position = pages.next_position[:, None] + jnp.arange(-T, 0)[None]
    q_BJRTGH = q.reshape(B, T, J, R, N // (J * R), H).transpose(0, 2, 3, 1, 4, 5)
    out, lse, _ = ragged_decode(
        q_BJRTGH,
        pages.entry,
        pages.owner,
        pages.position,
        position,
        scale=H**-0.5 if scale is None else scale,
        soft_cap=soft_cap,
        window=window,
    )
    out_BTNH = out.transpose(0, 3, 1, 2, 4, 5).reshape(B, T, N, H)
    return out_BTNH, lse.transpose(0, 3, 1, 2, 4).reshape(B, T, N)
