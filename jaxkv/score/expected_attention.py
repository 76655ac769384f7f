"""Attention that queries yet to come will pay, if they are like the prompt's.

Expected Attention, arXiv 2510.00636, as kvpress 0.5.5 computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkv.attention.rope import rotary_parts, rotate
from jaxkv.models.sizes import Sizes
from jaxkv.parts import Score
from jaxkv.seen import Seen
from pallas_kernels.sharded import over_mesh

EXACT = jax.lax.Precision.HIGHEST  # z goes into an exponential: no TF32


@dataclass(frozen=True)
class ExpectedAttention(Score):
    """s_j = (mean_g softmax_j(z_gj) + epsilon) ||v_j||_2, in fp32.

        z_gj = k_j^T R mu_g / sqrt(H) + k_j^T R Sigma_g R^T k_j / (2 H)

    mu_g and Sigma_g (divided by n) are the mean and covariance of a query head's
    queries before RoPE, of the new tokens' alone where a prompt goes on from a cache; R
    is the mean RoPE matrix of the `future` positions after the prompt. z is the
    logarithm of E exp(q^T k_j / sqrt(H)) for Gaussian queries. The first `sinks`
    positions are protected, and left out of mu, Sigma and the softmax. `covariance`
    False drops Sigma; `value_norm` False drops epsilon and the norm.
    """

    sinks: int = 4
    future: int = 512
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} is below 0; 0 protects no token.")
        if self.future < 1:
            raise ValueError(f"future={self.future}: it needs one position at least.")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon={self.epsilon} is below 0; 0 adds nothing.")

    @property
    def every_query(self) -> bool:
        return True

    def against(self, sizes: Sizes) -> str | None:
        if sizes.turned:
            return super().against(sizes)
        return (
            "turns queries to positions to come, and in the bases of such keys no "
            "numbers are the pairs that RoPE turns"
        )

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        frequencies = seen.inverse_frequencies.astype(jnp.float32)
        tokens_BS = seen.valid & ~self.protected(seen)
        first_B = seen.position.max(axis=1, where=seen.valid, initial=-1) + 1
        at, known = seen.query_position(tokens_BS), seen.by_head(tokens_BS)
        rows = {"q": seen.every_q, "at": at, "k": seen.k, "known": known}
        rows |= {"first": first_B, "frequencies": frequencies}
        kinds = {"q": "B-J", "at": "B", "k": "B-J", "first": "B", "frequencies": ""}
        kinds["known"] = "BJ" if known.shape[1] == seen.rows else "B"
        a_BKS = over_mesh(partial(self._by_row, scale=seen.scale), rows, kinds)
        if not self.value_norm:
            return a_BKS
        norm_BSK = jnp.linalg.norm(seen.values.astype(jnp.float32), axis=-1)
        return (a_BKS + self.epsilon) * norm_BSK.swapaxes(1, 2)

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """The attention sinks, by position."""
        return seen.valid & (seen.position < self.sinks)

    def minimum(self, length: int) -> int:
        # And the newest token: without its slot, a rerun of it would cost a sink.
        return min(self.sinks + 1, length)

    def _by_row(self, rows: Mapping[str, Array], scale: float) -> Float[Array, "B K S"]:
        """Row by row, so that one row's fp32 queries exist."""
        mapped = tuple(rows[name] for name in ("q", "at", "k", "known", "first"))
        attention = partial(
            self._attention, frequencies=rows["frequencies"], scale=scale
        )
        return jax.lax.map(attention, mapped)

    def _attention(self, row, frequencies: Float[Array, " half"], scale: float):
        """[K, S], the mean over the group of one sequence's softmax."""
        q_QNH, position, k_SKH, tokens, first = row
        Q, N, H = q_QNH.shape
        K = k_SKH.shape[1]
        q_QKGH = q_QNH.reshape(Q, K, N // K, H)
        k_SKH = self._turn_back(k_SKH.astype(jnp.float32), first, frequencies)

        def one_of_each_group(g):
            q_QKH = jax.lax.dynamic_index_in_dim(q_QKGH, g, axis=2, keepdims=False)
            q_QKH = q_QKH.astype(jnp.float32)[None]
            q_QKH = rotate(q_QKH, -position[None], frequencies)[0]
            z_KS = self._logits(q_QKH, k_SKH, position >= 0, scale)
            return jax.nn.softmax(z_KS, axis=-1, where=tokens)

        return jax.lax.map(one_of_each_group, jnp.arange(N // K)).mean(axis=0)

    def _logits(
        self,
        q: Float[Array, "Q K H"],
        k: Float[Array, "S K H"],
        counts: Bool[Array, " Q"],
        scale: float,
    ) -> Float[Array, "K S"]:
        """z of R^T k_j, for the mean and covariance of the queries that count."""
        n = jnp.maximum(counts.sum(), 1).astype(jnp.float32)
        counted = counts[:, None, None]
        mean_1KH = q.sum(axis=0, where=counted, keepdims=True) / n
        z_KS = jnp.einsum("SKH,KH->KS", k, mean_1KH[0], precision=EXACT) * scale
        if not self.covariance:
            return z_KS
        q = jnp.where(counted, q - mean_1KH, 0.0)
        sigma_KHI = jnp.einsum("QKH,QKI->KHI", q, q, precision=EXACT) / n
        half_SKI = jnp.einsum("SKH,KHI->SKI", k, sigma_KHI, precision=EXACT)
        return z_KS + (half_SKI * k).sum(axis=-1).T * (scale**2 / 2)

    def _turn_back(
        self, k: Float[Array, "S K H"], first, frequencies: Float[Array, " half"]
    ) -> Float[Array, "S K H"]:
        """R^T k: what R does to mu and Sigma, done once to the keys.

        A mean of rotations is no rotation: it shrinks fast pairs, as it should.
        """
        future_F = (first + jnp.arange(self.future)).astype(jnp.float32)
        angle_FH = future_F[:, None] * frequencies[None]
        cos_11H = jnp.cos(angle_FH).mean(axis=0)[None, None]
        sin_11H = jnp.sin(angle_FH).mean(axis=0)[None, None]
        still, one, two = rotary_parts(k, frequencies.shape[0])
        turned = still, one * cos_11H + two * sin_11H, two * cos_11H - one * sin_11H
        return jnp.concatenate(turned, axis=-1)
