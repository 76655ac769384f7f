"""The definition of latent_decode: ragged_decode, whose values are parts of its keys.

    v_s = the first `value_dim` numbers of k_s

A slot holds one latent (DeepSeek-V2, arXiv 2405.04434, section 2.1): its first numbers
are what all heads share of key and value, the others the rotary part of the key. A
query is absorbed: it is multiplied by its head's up-projection of keys before.
"""

from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry, Latent
from pallas_kernels.ragged_decode import reference


def latent_decode(
    q: Float[Array, "B J R T G H"],
    entry: Latent,
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    value_dim: int,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J R T G S"],
]:
    """Returns (out, lse, logits of the row's slots, -inf where not live); S = M P."""
    out, lse, logits = reference.ragged_decode(
        q,
        Entry(entry.k, entry.k),
        position,
        q_position,
        table,
        length,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        bias=bias,
    )
    return out[..., :value_dim], lse, logits
