"""MatryoshkaKV: keys are cut to their rank after RoPE, and a cache is read absorbed.

MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection,
arXiv 2410.14731. With U_r the first columns of a kv head's bases (low_rank.py),

    entry = [v U_r, rope(k) U_r],    rope(q) k^T ~ [0, rope(q) U_r] entry^T
    out_n = (sum_j a_j v_j U_r) U_r^T

A prompt's tokens attend to each other as grouped queries do, to keys and values that
have been cut and made again; a cache is read as it is.
"""

from jaxtyping import Array, Float, Int

from jaxkv.attend.all_pages import attend_by_row, by_token
from jaxkv.attention.low_rank import LowRank


class Matryoshka(LowRank):
    """Low-rank attention whose entries hold rotated keys."""

    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: None = None,
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K W"], None]:
        """Rotated queries, and the entries, which are keys and values in one."""
        q_BTNH, k_BTKH, v_BTKH = self.grouped.entries(x, position)
        return q_BTNH, self._entry(k_BTKH, v_BTKH), None

    def attend_prompt(
        self,
        q: Float[Array, "B S N H"],
        k: Float[Array, "B S K W"],
        v: None,
        segment: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N"] | None]:
        return self.grouped.attend_prompt(q, *self._restored(k), segment)

    def attend_entries(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K W"],
        v: None,
        q_position: Int[Array, "B T"],
        k_position: Int[Array, " B #K S"],
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
        restored = self._restored(k)
        return self.grouped.attend_entries(q, *restored, q_position, k_position)

    def attend_pages(self, q, pages, position, layer=0, *, return_logits=False):
        """Absorbed."""
        by_row, lse, logits = attend_by_row(
            self.asked(q),
            pages,
            position,
            layer,
            scale=self.scale,
            value_dim=self.value_dim,
            return_logits=return_logits,
        )
        return self._heads(by_token(by_row)), lse, logits
