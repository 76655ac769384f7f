"""The shapes that column_scores is tested, benchmarked and compiled at."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.call import Call, shape
from pallas_kernels.column_scores import column_scores
from pallas_kernels.column_scores.passes import FEW


@dataclass(frozen=True)
class Spec:
    """One call: letters as in jaxkv/dims.py; `lengths` are the real keys of each row.

    The queries are the last T of each row's tokens: a shorter row has fewer.
    """

    name: str
    T: int
    S: int
    K: int
    G: int
    H: int
    lengths: tuple[int, ...]  # one a row
    reduce: str = "sum"
    group: str | None = None

    @property
    def B(self) -> int:
        """Rows."""
        return len(self.lengths)

    def calls(self, dtype: DTypeLike = jnp.bfloat16) -> tuple[Call, ...]:
        """The op over a prompt's keys; no program may move what fills a TPU's tiles."""
        arrays = dict(
            q=shape(dtype, self.B, self.T, self.K * self.G, self.H),
            k=shape(dtype, self.B, self.S, self.K, self.H),
            q_position=shape(jnp.int32, self.B, self.T),
            k_position=shape(jnp.int32, self.B, self.S),
        )
        options = dict(scale=self.H**-0.5, reduce=self.reduce, group=self.group)
        tiles = self.K % 8 == 0 and self.H % 128 == 0  # else XLA lays them otherwise
        large = ("q", "k") if self.T > FEW else ("k",)
        pool = tuple(arrays[name] for name in large if tiles)
        return (Call(column_scores, arrays, options, pool),)


SPECS = (
    Spec("one query", T=1, S=40, K=2, G=4, H=64, lengths=(40, 1)),
    Spec("window", T=32, S=300, K=4, G=2, H=64, lengths=(300, 31, 0)),
    Spec("window, max", T=16, S=200, K=2, G=3, H=96, lengths=(200, 7), reduce="max"),
    Spec("all", T=1100, S=1100, K=2, G=2, H=64, lengths=(1100, 513)),
    Spec("all, max", T=600, S=600, K=1, G=4, H=128, lengths=(600,), reduce="max"),
    Spec("few keys", T=300, S=5, K=1, G=1, H=64, lengths=(5, 3)),
    Spec("group max", T=260, S=260, K=2, G=2, H=64, lengths=(9, 257), group="max"),
    Spec(
        "max, group mean",
        T=20,
        S=50,
        K=2,
        G=2,
        H=64,
        lengths=(50,),
        reduce="max",
        group="mean",
    ),
    Spec("eight heads", T=130, S=260, K=8, G=1, H=128, lengths=(260,)),
)
