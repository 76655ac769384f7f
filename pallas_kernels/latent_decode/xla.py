"""latent_decode through XLA: ragged_decode of rows that are keys and values.

Both products go over whole rows, of which the last numbers of the second are dropped:
the values cut out of the rows would be a copy of nearly the whole pool.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry, Latent
from pallas_kernels.ragged_decode import xla


def latent_decode(
    q: Float[Array, "B J R T G H"],
    entry: Latent,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    *,
    value_dim: int,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    chunk: int | None = None,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `reference.latent_decode`: out in q's dtype, lse in fp32, and each slot's logit
    as `ragged_decode.xla` gives it.
    """
    spare = entry.row.shape[-1] - q.shape[-1]
    out, lse, logits = xla.ragged_decode(
        jnp.pad(q, [(0, 0)] * 5 + [(0, spare)]),
        Entry(entry.row, entry.row),
        owner,
        position,
        q_position,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        bias=bias,
        return_logits=return_logits,
        chunk=chunk,
    )
    return out[..., :value_dim], lse, logits
