"""Whole chunks of neighbours stay: ChunkKV (arXiv 2502.00299)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.parts import Select
from jaxkv.seen import Seen


@dataclass(frozen=True)
class Chunks(Select):
    """Protected tokens, then candidates by their chunk's score, the same for each head.

        chunk c   positions c * size to (c + 1) * size - 1
        s_c     = mean over the candidates j of c of sum over kv heads of s_hj

    Ties go to the earlier chunk; inside a chunk the lower position comes first. The
    budget may cut the last chunk that fits (kvpress 0.5.5 keeps whole chunks, as many
    as the keep's share of all chunks, and so fewer or more slots). Scores count in
    fp32; tokens that cannot be kept count in no chunk. A token that some heads evicted
    before is a candidate of the others, and the sum is over those.
    """

    size: int = 20

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: a chunk needs one token at least.")

    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        summed_BS = jnp.where(candidate, scores, 0.0).sum(axis=1)
        counted_BS = candidate.any(axis=1)
        mean_BS = jax.vmap(self._chunk_mean)(summed_BS, seen.position, counted_BS)
        turn = jnp.where(protected, 0, jnp.where(candidate, 1, 2))
        worst = jnp.where(candidate, -mean_BS[:, None], 0.0)
        position = jnp.broadcast_to(seen.position[:, None], turn.shape)
        token = jax.lax.broadcasted_iota(jnp.int32, turn.shape, 2)
        keys = turn, worst, position, token
        order = jax.lax.sort(keys, num_keys=3, is_stable=True)[3]
        return jnp.broadcast_to(order, scores.shape)[..., :most]

    def _chunk_mean(
        self,
        score: Float[Array, " S"],
        position: Int[Array, " S"],
        candidate: Bool[Array, " S"],
    ) -> Float[Array, " S"]:
        """The score of each token's chunk, for one sequence; slots in any order.

        Every token sums its chunk from the chunk's first token on, so that all of them
        get the same bits.
        """
        S = len(position)
        order = jnp.argsort(position)
        chunk = position[order] // self.size
        rank = jnp.arange(S, dtype=jnp.int32)
        begins = jnp.concatenate([jnp.ones(1, bool), chunk[1:] != chunk[:-1]])
        first = jax.lax.cummax(jnp.where(begins, rank, 0))
        at_SC = first[:, None] + jnp.arange(self.size, dtype=jnp.int32)[None]
        near_SC = jnp.minimum(at_SC, S - 1)
        mine_SC = (at_SC < S) & (chunk[near_SC] == chunk[:, None])
        mine_SC = mine_SC & candidate[order][near_SC]
        total = jnp.where(mine_SC, score[order][near_SC], 0.0).sum(axis=1)
        count = mine_SC.sum(axis=1).astype(score.dtype)
        mean = total / jnp.maximum(count, 1.0)
        return jnp.zeros_like(score).at[order].set(mean)
