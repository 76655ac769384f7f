"""Heavy hitters: the attention that all queries of the prompt pay to each token (H2O).

H2O: Heavy-Hitter Oracle for Efficient Generative Inference, arXiv 2306.14048.
"""

from dataclasses import dataclass

from jaxtyping import Array, Float

from jaxkv.held import Held
from jaxkv.parts import Score
from jaxkv.score.attention_paid import attention_paid
from jaxkv.seen import Seen


@dataclass(frozen=True)
class AccumulatedAttention(Score):
    """s_j = sum_i mean_g softmax_j(q_i k_j^T / sqrt(H)), over the stored tokens i.

    The softmax of query i is over the keys up to i, in fp32. A token that is run again
    after the compression (valid but not stored) adds nothing here: it counts when it is
    run. Sums favour early tokens, which more queries see, as in the paper. Where a
    prompt goes on from a cache, the new tokens' sums are added to those that slots
    carry; with when="prefill" none carries any, and the sums are the new tokens' alone.
    """

    @property
    def lse(self) -> bool:
        return True

    @property
    def every_query(self) -> bool:
        return True

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        at = seen.query_position(seen.stored)
        scores_BKS = attention_paid(seen, seen.every_q, at, seen.valid, seen.lse)
        if seen.earlier is None or "received" not in seen.earlier.state:
            return scores_BKS
        return scores_BKS + seen.earlier.state["received"]

    def carried(self, scores: Float[Array, "B K S"]) -> dict[str, Array]:
        return {"received": scores}

    def again(self, held: Held):
        """The running sums, with what the new tokens paid."""
        total = held.state["received"] + held.received
        return total, held.position < -1, {"received": total}
