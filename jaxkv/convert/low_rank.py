"""What the two ways to low-rank attention have in common: bases, ranks, and cuts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.attention.cayley import proper
from jaxkv.attention.low_rank import LowRank
from jaxkv.convert.base import in_fp32, parameters, with_attention
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.folder import assemble
from jaxkv.models.sizes import LowRankSizes


class Bases(NamedTuple):
    """Of one layer, the columns that hold most first."""

    key: Float[np.ndarray, "#K H H"]
    value: Float[np.ndarray, "K H H"]
    value_mean: Float[np.ndarray, "K H"]


def whole(model: Decoder, bases: Mapping[int, Bases], *, after_rope: bool) -> Decoder:
    """The model with attention of full rank in these layers: the same logits."""
    config = model.config
    full = (config.head_dim,) * config.kv_heads
    sizes = LowRankSizes(full, full, after_rope)
    grouped = parameters(model)["layers"]
    made = (
        (
            i,
            sizes,
            {
                "grouped": grouped[i]["attention"],
                "key_basis": proper(key),
                "value_basis": proper(value),
                "value_mean": mean,
            },
        )
        for i, (key, value, mean) in bases.items()
    )
    return with_attention(model, made)


def with_ranks(model: Decoder, sizes: Mapping[int, LowRankSizes]) -> Decoder:
    """The model with low-rank layers cut to other ranks; its parameters stay."""
    config = model.config
    attention = list(config.attention)
    for i, own in sizes.items():
        attention[i] = own
    changed = replace(config, attention=tuple(attention))
    return assemble(changed, parameters(model), model.table[...].dtype)


def numbers_kept(config: DecoderConfig, share: float) -> int:
    """W, so many of a head's 2 H numbers of key and value as a share of them is.

    Raises ValueError for what is no share, or keeps no key or no value.
    """
    H = config.head_dim
    if not 0 < share <= 1:
        raise ValueError(
            f"keep_bytes={share} is no share of the bytes of keys and values; give one "
            "above 0 and up to 1."
        )
    kept = int(share * 2 * H + 1e-9)
    if kept < 2:
        raise ValueError(
            f"keep_bytes={share} leaves {kept} of a head's {2 * H} numbers, and its "
            f"key and value need one each; give {1 / H} at least."
        )
    return kept


@jax.jit
def through(
    layer: Layer,
    x: Float[Array, "B S D"],
    key_ranks: Int[Array, " K"],
    value_ranks: Int[Array, " K"],
) -> Float[Array, "B S D"]:
    """The hidden states after a layer of full rank, as if it were cut to these ranks.

    One program for all ranks: what a cut drops is 0 in an entry's key, and what values
    are in the mean in its value.
    """
    layer = in_fp32(layer)
    attention = layer.attention
    assert isinstance(attention, LowRank)
    position = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    q, entry, _ = attention.entries(layer.attention_norm(x), position)
    H = attention.config.head_dim
    at = jnp.tile(jnp.arange(H), 2)
    ranks = jnp.stack([value_ranks, key_ranks], axis=1)
    kept = at[None] < jnp.repeat(ranks, H, axis=1, total_repeat_length=2 * H)
    mean = jnp.einsum(
        "KH,KHE->KE", attention.value_mean[...], attention.value_basis[...]
    )
    dropped = jnp.concatenate([mean, jnp.zeros_like(mean)], axis=1).astype(entry.dtype)
    entry = jnp.where(kept[None, None], entry, dropped[None, None])
    heads, _ = attention.attend_prompt(q, entry, None)
    x = x + attention.output(heads)
    return x + layer.mlp(layer.mlp_norm(x))
