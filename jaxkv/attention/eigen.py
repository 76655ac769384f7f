"""Eigen Attention: keys are cut to their rank before RoPE, and rotated when read.

Eigen Attention: Attention in Low-Rank Space for KV Cache Compression,
arXiv 2408.05646, as it is for models with RoPE. With U_r the first columns of a basis
(low_rank.py), that of the keys one for all kv heads, and p_j the position of token j,

    entry = [v U_r, k U_r],    k not rotated
    z_nj = rope(q_n) rope_p_j((k_j U_r) U_r^T)^T / sqrt(H)
    out_n = (sum_j softmax_j(z_nj) v_j U_r) U_r^T

Keys before RoPE need fewer directions than after it, but no query absorbs the basis
behind a rotation: a cache's keys are made again and rotated each time that it is read,
some pages at a time.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.attend.all_pages import by_token
from jaxkv.attend.made_keys import attend_made
from jaxkv.attention.low_rank import LowRank
from jaxkv.attention.rope import rotate, turn


class Eigen(LowRank):
    """Low-rank attention whose entries hold keys that are not rotated.

    Its queries are not either, until they meet keys whose positions are known.
    """

    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: None = None,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K W"], None]:
        """Queries, and the entries, which are keys and values in one; not rotated."""
        q_BTNH, k_BTKH, v_BTKH = self.grouped.before_rope(x)
        return q_BTNH, self._entry(k_BTKH, v_BTKH), None

    def attend_prompt(
        self,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K W"],
        v: None,
        segment: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"] | None]:
        """Rotated by slot: only distances count, also those inside a segment."""
        slot_1S = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
        keys, values = self._restored(k)
        return self.grouped.attend_prompt(
            self._rotated(q, slot_1S), self._rotated(keys, slot_1S), values, segment
        )

    def attend_entries(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K W"],
        v: None,
        q_position: Int[Array, "B T"],
        k_position: Int[Array, " B #K S"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
        keys, values = self._restored(k)
        at_BKS = jnp.broadcast_to(k_position, keys.swapaxes(1, 2).shape[:-1])
        keys = turn(keys, at_BKS, jnp.asarray(self.grouped.inverse_frequencies))
        queries = self._rotated(q, q_position)
        return self.grouped.attend_entries(
            queries, keys, values, q_position, k_position
        )

    def attend_pages(self, q, pages, position, layer=0, *, return_logits=False):
        """Keys of a few pages at a time are made again, and rotated."""
        by_row, lse, logits = attend_made(
            self._rotated(q, position),
            pages,
            position,
            layer,
            basis=self._key_columns[0],
            inverse_frequencies=self.grouped.inverse_frequencies,
            scale=self.scale,
            value_dim=self.value_dim,
            return_logits=return_logits,
        )
        return self._heads(by_token(by_row)), lse, logits

    def _rotated(
        self, x: Float[Array, "B S heads H"], position: Int[Array, " #B S"]
    ) -> Float[Array, "B S heads H"]:
        at_BS = jnp.broadcast_to(position, x.shape[:2])
        return rotate(x, at_BS, self.grouped.inverse_frequencies)
