"""Heavy hitters: the attention that all queries of the prompt pay to each token (H2O).

H2O: Heavy-Hitter Oracle for Efficient Generative Inference, arXiv 2306.14048.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.held import Held
from jaxkv.parts import Score
from jaxkv.seen import Seen
from pallas_kernels.column_scores import column_scores


@dataclass(frozen=True)
class AccumulatedAttention(Score):
    """s_j = sum_i mean_g softmax_j(q_i k_j^T / sqrt(H)), over the stored tokens i.

    The softmax of query i is over the keys up to i, in fp32. A token that is run again
    after the compression (valid but not stored) adds nothing here: it counts when it is
    run. Sums favour early tokens, which more queries see, as in the paper.
    """

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        scores_BKS, _ = column_scores(
            seen.every_q,
            seen.k,
            jnp.where(seen.stored, seen.position, -1),
            jnp.where(seen.valid, seen.position, -1),
            scale=seen.k.shape[-1] ** -0.5,
        )
        return scores_BKS

    def carried(self, scores: Float[Array, "B K S"]) -> dict[str, Array]:
        return {"received": scores}

    def again(self, held: Held):
        """The running sums, with what the new tokens paid."""
        total = held.state["received"] + held.received
        return total, held.position < -1, {"received": total}
