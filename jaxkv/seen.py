"""Seen: what one layer has seen of a batch of prompts; the record parts look at."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fed:
    """Tokens that ran against the full cache after the prompt, as one layer saw them.

    They belong to the part of the prompt from `start` on (a chunk that was repeated).
    """

    q: Float[Array, "B F N H"]  # rotated
    k: Float[Array, "B F K H"]  # rotated
    position: Int[Array, "B F"]  # after the prompt; -1 = padding
    start: Int[Array, ""]
    # Of their softmax over the stored prompt and themselves, where it has been made.
    lse: Float[Array, "B F N"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Earlier:
    """What a layer's heads hold of a prompt that goes on from a cache.

    What a slot carried stands at its token; 0 for new tokens and for those evicted.
    """

    held: Bool[Array, "B K S"]  # false where the head evicted the token
    q_position: Int[Array, "B Q"]  # of the new tokens' queries; -1 = padding
    state: dict[str, Array]  # [B, K, S] each


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """One layer's queries, keys and values, where they stand, and its own weights.

    Rows are padded to the right. `q` holds the last W queries of each row, oldest first
    (W is the most that the method's parts ask for); a row shorter than W has
    q_position = -1 in the first of them. `every_q` holds all of them, beside the keys;
    once the whole cache has been made and only what was fed is to be looked at, there
    are none. `lse` is the logarithm of each one's softmax's sum over the keys up to it,
    where a part asks for it and the layer's own attention made it.

    Where a prompt goes on from a cache, S covers the earlier tokens too, each at its
    own position: the entries that each head still holds, 0 where it holds none. The
    queries are then the new tokens' only.

    Of latent attention queries are absorbed and keys the entries, one row for all
    heads, of which the first `value_dim` numbers are the values. Of low-rank attention
    likewise, a row a kv head, and what is not in a head's `key_part` is its value.
    """

    q: Float[Array, "B W N H"]  # rotated
    q_position: Int[Array, "B W"]
    every_q: Float[Array, "B Q N H"]  # rotated; Q is S, or 0, or of the new tokens
    k: Float[Array, "B S K H"]  # rotated
    v: Float[Array, "B S K H"] | None  # None where a value is part of its key
    position: Int[Array, "B S"]
    valid: Bool[Array, "B S"]  # a token, not padding
    stored: Bool[Array, "B S"]  # may get a slot (not so the token that is run again)
    layer: Int[Array, ""]  # the layer's index
    # RoPE's, radians a token, of the last 2 * half numbers of a key.
    inverse_frequencies: Float[Array, " half"]
    # What a query head makes of a value, W_o; where a part asks for it.
    out: Float[Array, "K G E D"] | None
    key: Array  # [B] random keys, made from each sequence's own tokens
    scale: float = field(metadata={"static": True})  # of the logits q k^T
    value_dim: int = field(metadata={"static": True})  # E
    calibration: dict[str, dict[str, Array]] = field(
        default_factory=dict
    )  # the layer's
    fed: Fed | None = None
    earlier: Earlier | None = None
    lse: Float[Array, "B Q N"] | None = None
    # Which numbers of `k` are keys', where values are beside them and not within.
    key_part: Bool[Array, "K H"] | None = None
    # What tokens after the stored ones need of them, where entries look back.
    trail: Float[Array, "B K ..."] | None = None

    @property
    def length(self) -> Int[Array, " B"]:
        """Tokens of each row, padding not counted."""
        return self.valid.sum(axis=1)

    @property
    def keys(self) -> Float[Array, "B S K H"]:
        """The keys, with 0 for what is only a value's."""
        if self.key_part is None:
            return self.k
        return jnp.where(self.key_part[None, None], self.k, 0)

    @property
    def values(self) -> Float[Array, "B S K E"]:
        """The values, also where they are part of the keys."""
        if self.v is not None:
            return self.v
        value = self.k[..., : self.value_dim]
        if self.key_part is None:
            return value
        return jnp.where(self.key_part[None, None, :, : self.value_dim], 0, value)

    @property
    def rows(self) -> int:
        """K, kv heads."""
        return self.k.shape[2]

    def query_position(self, tokens: Bool[Array, "B S"]) -> Int[Array, "B Q"]:
        """Where those of `every_q` stand that are of these tokens; -1 for others."""
        if self.earlier is None:
            return jnp.where(tokens, self.position, -1)
        at = self.earlier.q_position
        asked = jnp.take_along_axis(tokens, jnp.maximum(at, 0), axis=1)
        return jnp.where((at >= 0) & asked, at, -1)

    def by_head(self, tokens: Bool[Array, "B S"]) -> Bool[Array, " B #K S"]:
        """Which of these tokens each head has; [B, 1, S] where every head has all."""
        if self.earlier is None:
            return tokens[:, None]
        return tokens[:, None] & self.earlier.held
