"""The attention that a token gets from tokens fed to the full cache: KVzip and oracle.

KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction,
arXiv 2505.23416.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkv.feeds import Future, Repeat
from jaxkv.parts import Score
from jaxkv.seen import Fed, Seen
from pallas_kernels.column_scores import column_scores


@dataclass(frozen=True)
class RepeatedAttention(Score):
    """s_j = max_{i, g} softmax_j(q_gi k_j^T / sqrt(H)), i the fed tokens, g the group,

    while the prompt is repeated, chunk by chunk of `chunk` tokens. In a chunk's run the
    softmax is over the first `sinks` tokens, the chunk, and the fed tokens up to i, in
    fp32; only the chunk's tokens get a score from it. The first `sinks` positions are
    protected. What is fed before each chunk: `jaxkv.feeds.Repeat`.
    """

    chunk: int = 2048
    overlap: int = 8
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.overlap < 0 or self.sinks < 0:
            raise ValueError(
                f"chunk={self.chunk}, overlap={self.overlap}, sinks={self.sinks}: give "
                "1 or more, 0 or more, 0 or more."
            )

    @property
    def feed(self) -> Repeat:
        return Repeat(self.chunk, self.overlap)

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        fed = _fed(seen)
        S = seen.k.shape[1]
        if self.chunk >= S:  # the sinks and the chunk are the whole prompt
            return _attention(seen, fed)
        size = self.chunk
        start = jnp.minimum(fed.start, S - size)  # the last chunk may reach back
        first = min(self.sinks, S)
        at = start + jnp.arange(size)
        k_BSKH = jax.lax.dynamic_slice_in_dim(seen.k, start, size, axis=1)
        position = jnp.where(seen.stored, seen.position, -1)
        here = jax.lax.dynamic_slice_in_dim(position, start, size, axis=1)
        here = jnp.where((at >= fed.start)[None], here, -1)
        again = (here >= 0) & (here < self.sinks)
        sinks = position[:, :first]
        a_BKS, _ = column_scores(
            fed.q,
            jnp.concatenate([seen.k[:, :first], k_BSKH, fed.k], axis=1),
            fed.position,
            jnp.concatenate([sinks, jnp.where(again, -1, here), fed.position], axis=1),
            scale=seen.scale,
            reduce="max",
        )
        scores = jnp.zeros((*a_BKS.shape[:2], S), jnp.float32)
        chunk = jnp.where((here >= 0)[:, None], a_BKS[..., first : first + size], 0.0)
        scores = jax.lax.dynamic_update_slice_in_dim(scores, chunk, start, axis=2)
        return scores.at[..., :first].max(a_BKS[..., :first])

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """The attention sinks, by position."""
        return seen.valid & (seen.position < self.sinks)

    def minimum(self, length: int) -> int:
        return min(self.sinks + 1, length)


@dataclass(frozen=True)
class FutureAttention(Score):
    """s_j = max over what will be asked and answered, i, and the group g, of

        softmax_j(q_gi k_j^T / sqrt(H))

    over the whole prompt and the tokens up to i, in fp32, with the full cache. Nobody
    knows it when compressing: a ceiling for what keeping tokens by attention can give.
    """

    @property
    def feed(self) -> Future:
        return Future()

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        return _attention(seen, _fed(seen))


def _attention(seen: Seen, fed: Fed) -> Float[Array, "B K S"]:
    """The most attention that each token of the prompt gets from the fed tokens.

    Over the whole prompt and the fed tokens up to each; where that softmax's sum is
    known, the fed keys need not be looked at.
    """
    k, position = seen.k, jnp.where(seen.stored, seen.position, -1)
    if fed.lse is None:
        k = jnp.concatenate([k, fed.k], axis=1)
        position = jnp.concatenate([position, fed.position], axis=1)
    a_BKS, _ = column_scores(
        fed.q,
        k,
        fed.position,
        position,
        scale=seen.scale,
        reduce="max",
        lse=fed.lse,
    )
    return a_BKS[..., : seen.k.shape[1]]


def _fed(seen: Seen) -> Fed:
    if seen.fed is None:
        raise ValueError("Nothing was fed to the full cache, and this score needs it.")
    return seen.fed
