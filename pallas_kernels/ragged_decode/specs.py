"""The shapes that ragged_decode is tested, benchmarked and compiled at."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.call import Call, shape
from pallas_kernels.layout import entry_shape
from pallas_kernels.ragged_decode import ragged_decode


@dataclass(frozen=True)
class Spec:
    """One call: letters as in jaxkv/dims.py; `lengths` are live slots of each row."""

    name: str
    B: int
    J: int
    R: int  # rows of the pool, kv heads of a head group
    T: int
    G: int
    H: int
    P: int
    lengths: tuple[int, ...]  # one a row, repeated over B and J
    spare: int = 1  # pages that nobody owns
    soft_cap: float | None = None
    window: int | None = None
    bias: bool = False
    sinks: bool = False
    dtype: DTypeLike = jnp.bfloat16

    @property
    def pages(self) -> int:
        """Pages of a pool: what the rows use, and the spare ones."""
        return sum(-(-n // self.P) for n in self.lengths) + self.spare

    @property
    def table(self) -> int:
        """M, pages of the longest row."""
        return max(1, -(-max(self.lengths) // self.P))

    def calls(self, dtype: DTypeLike | None = None) -> tuple[Call, ...]:
        """The op over a pool of this shape."""
        dtype = self.dtype if dtype is None else dtype
        pool = (self.B, self.J, self.pages)
        entry = entry_shape(dtype, *pool, self.P, self.H)
        arrays = dict(
            q=shape(dtype, self.B, self.J, self.R, self.T, self.G, self.H),
            entry=entry,
            owner=shape(jnp.int32, *pool),
            position=shape(jnp.int32, *pool, self.P),
            q_position=shape(jnp.int32, self.B, self.T),
            table=shape(jnp.int32, self.B, self.J, self.R, self.table),
            length=shape(jnp.int32, self.B, self.J, self.R),
            bias=shape(jnp.float32, *pool, self.P) if self.bias else None,
            sinks=shape(jnp.float32, self.J, self.R, self.G) if self.sinks else None,
        )
        options = dict(scale=self.H**-0.5, soft_cap=self.soft_cap, window=self.window)
        return (
            Call(ragged_decode, arrays, options, pool=tuple(jax.tree.leaves(entry))),
        )


SPECS = (
    Spec("one token", B=1, J=1, R=2, T=1, G=1, H=64, P=64, lengths=(1, 0)),
    Spec("ragged", B=2, J=1, R=4, T=1, G=2, H=64, P=64, lengths=(0, 63, 64, 200)),
    Spec("groups", B=2, J=2, R=3, T=1, G=4, H=128, P=64, lengths=(65, 0, 130)),
    Spec("queries", B=1, J=1, R=3, T=5, G=2, H=64, P=64, lengths=(70, 8, 0)),
    Spec("window", B=1, J=1, R=3, T=3, G=2, H=96, P=64, lengths=(150, 0, 3), window=17),
    Spec(
        "soft cap",
        B=2,
        J=1,
        R=3,
        T=1,
        G=2,
        H=256,
        P=64,
        lengths=(9, 0, 64),
        soft_cap=30.0,
    ),
    Spec(
        "bias", B=1, J=2, R=3, T=2, G=3, H=64, P=128, lengths=(127, 129, 0), bias=True
    ),
    Spec("all empty", B=1, J=1, R=2, T=1, G=2, H=64, P=64, lengths=(0, 0)),
    Spec("most queries", B=1, J=1, R=3, T=8, G=4, H=128, P=128, lengths=(0, 200, 7)),
    Spec("one head", B=2, J=1, R=2, T=1, G=1, H=128, P=128, lengths=(300, 0)),
    Spec(
        "wide window",
        B=1,
        J=2,
        R=2,
        T=2,
        G=2,
        H=256,
        P=128,
        lengths=(0, 140),
        window=40,
    ),
    Spec("sinks", B=1, J=1, R=2, T=1, G=8, H=64, P=64, lengths=(64, 0), sinks=True),
    Spec(
        "float32",
        B=1,
        J=1,
        R=2,
        T=1,
        G=4,
        H=128,
        P=128,
        lengths=(0, 129),
        dtype="float32",
    ),
)
