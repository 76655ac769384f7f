"""Keys along the direction that queries have in common stay (Q-Filters).

Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression, arXiv 2503.02812.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkv.models.sizes import Sizes
from jaxkv.parts import Score
from jaxkv.seen import Seen


@dataclass(frozen=True)
class QueryFilter(Score):
    """s_j = -<filter, k_j>, in fp32: filters point away from the queries.

    One filter a kv head, made once of the model (jaxkv/calibrate/query_filters.py);
    keys are rotated. The `window` newest tokens are protected.
    """

    window: int = 64

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window={self.window} is below 0; 0 protects no token.")

    @property
    def calibration(self) -> str:
        return "query_filters"

    def against(self, sizes: Sizes) -> str | None:
        if sizes.by_head and sizes.turned:
            return super().against(sizes)
        if sizes.by_head:
            return (
                "knows a direction of whole keys, and those cached are cut to the "
                "directions of a basis"
            )
        return (
            "knows one direction that the queries of a kv head have in common, and "
            "all heads of a layer look at its one row of latents, from many"
        )

    def __call__(self, seen: Seen) -> Float[Array, "B K S"]:
        filter_KH = seen.calibration[self.calibration]["filter"]
        return -jnp.einsum(
            "BSKH,KH->BKS",
            seen.k.astype(jnp.float32),
            filter_KH.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,  # no TF32: scores must not tie
        )

    def protected(self, seen: Seen) -> Bool[Array, "B S"]:
        """The last `window` tokens."""
        newest = seen.position.max(axis=1, where=seen.valid, initial=-1)[:, None]
        return seen.valid & (seen.position > newest - self.window)

    def minimum(self, length: int) -> int:
        return min(self.window, length)
