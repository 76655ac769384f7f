"""Half of the slots by score, half by what a token moves in the layer's output.

CriticalKV: Identify Critical KV Cache in LLM Inference from an Output Perturbation
Perspective, arXiv 2502.03805.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.best import best
from jaxkv.parts import Select
from jaxkv.seen import Seen
from jaxkv.select.best_first import best_first
from pallas_kernels.sharded import over_mesh

TOKENS = 256  # tokens of a row whose W_o v, [K, G, D] each, exists at one time


@dataclass(frozen=True)
class Critical(Select):
    """The best floor(first * c_h) tokens by score, then the others by t_j.

        t_j = (s_j + epsilon) mean_g ||W_o,g^T v_j||_1

    W_o,g [H, D] is a query head's rows of the output matrix, c_h the head's slots.
    Protected tokens come before all and count as the best; the first stage takes one
    token at least (none for first = 0). As in kvpress 0.5.5, which weighs the protected
    tokens beyond the first stage too and may drop them; here they stay.
    """

    first: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.first <= 1:
            raise ValueError(f"first={self.first} is not a fraction from 0 to 1.")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon={self.epsilon} is below 0; 0 adds nothing.")

    @property
    def looks_at_out(self) -> bool:
        return True

    def __call__(
        self,
        seen: Seen,
        scores: Float[Array, "B K S"],
        protected: Bool[Array, " B #K S"],
        candidate: Bool[Array, " B #K S"],
        slots: Int[Array, "B K"],
        most: int | None = None,
    ) -> Int[Array, "B K O"]:
        left_BK = jnp.maximum(self.sure(slots) - protected.sum(axis=-1), 0)
        sure_BKS = best(jnp.where(candidate, scores, -jnp.inf), left_BK)
        assert seen.out is not None
        moved_BKS = (scores + self.epsilon) * projected_norm(seen.values, seen.out)
        second = jnp.where(candidate & ~sure_BKS, moved_BKS, scores)
        return best_first(second, protected, candidate, sure_BKS, most)

    def sure(self, slots: Int[Array, "B K"]) -> Int[Array, "B K"]:
        """Slots of the first stage."""
        least = 1 if self.first > 0 else 0
        # A product such as 0.29 * 100 falls a hair short of the whole number it means.
        share = jnp.floor(slots.astype(jnp.float32) * self.first + 1e-4)
        return jnp.maximum(share.astype(slots.dtype), least)


def projected_norm(
    v: Float[Array, "B S K H"], out: Float[Array, "K G H D"]
) -> Float[Array, "B K S"]:
    """mean_g ||W_o,g^T v_j||_1 in fp32, over TOKENS tokens of a row at a time."""
    arrays, kinds = {"v": v, "out": out}, {"v": "B-J", "out": "J"}
    return over_mesh(lambda mine: _projected_norm(**mine), arrays, kinds)


def _projected_norm(v, out):
    def one_token(v_KH):
        moved_KGD = jnp.einsum(
            "KH,KGHD->KGD", v_KH, out, preferred_element_type=jnp.float32
        )
        return jnp.abs(moved_KGD).sum(axis=-1).mean(axis=-1)

    def one_row(v_SKH):
        return jax.lax.map(one_token, v_SKH, batch_size=TOKENS)

    return jax.lax.map(one_row, v).swapaxes(1, 2)
