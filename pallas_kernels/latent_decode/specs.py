"""The shapes that latent_decode is tested, benchmarked and compiled at."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.call import Call
from pallas_kernels.latent_decode import latent_decode
from pallas_kernels.layout import entry_shape
from pallas_kernels.ragged_decode.specs import Spec as Rows


@dataclass(frozen=True)
class Spec:
    """One call of rows whose H numbers a slot begin with `value_dim` of a value."""

    rows: Rows
    value_dim: int

    @property
    def name(self) -> str:
        return self.rows.name

    def calls(self, dtype: DTypeLike | None = None) -> tuple[Call, ...]:
        """The op over a pool of this shape."""
        rows = self.rows
        dtype = rows.dtype if dtype is None else dtype
        (call,) = rows.calls(dtype)
        pool = (rows.B, rows.J, rows.pages)
        entry = entry_shape(dtype, *pool, rows.P, rows.H, values=False)
        arrays = {n: x for n, x in call.arrays.items() if n != "sinks"}
        options = call.options | {"value_dim": self.value_dim}
        leaves = tuple(jax.tree.leaves(entry))
        return (Call(latent_decode, arrays | {"entry": entry}, options, pool=leaves),)


SPECS = (
    Spec(
        Rows(
            "128 heads",
            B=2,
            J=1,
            R=1,
            T=1,
            G=128,
            H=576,
            P=128,
            lengths=(200,),
            spare=2,
        ),
        value_dim=512,
    ),
    Spec(
        Rows("16 heads", B=3, J=1, R=1, T=1, G=16, H=576, P=64, lengths=(130,)),
        value_dim=512,
    ),
    Spec(
        Rows("demo", B=2, J=1, R=3, T=1, G=4, H=96, P=64, lengths=(0, 63, 129)),
        value_dim=64,
    ),
    Spec(
        Rows(
            "queries",
            B=1,
            J=2,
            R=2,
            T=5,
            G=4,
            H=192,
            P=64,
            lengths=(70, 0),
            window=17,
            bias=True,
        ),
        value_dim=128,
    ),
    Spec(
        Rows(
            "one head",
            B=2,
            J=1,
            R=2,
            T=1,
            G=1,
            H=320,
            P=128,
            lengths=(1, 300),
            soft_cap=30.0,
        ),
        value_dim=256,
    ),
    Spec(
        Rows("all empty", B=1, J=1, R=2, T=1, G=8, H=96, P=128, lengths=(0, 0)),
        value_dim=64,
    ),
    Spec(
        Rows(
            "float32",
            B=1,
            J=1,
            R=1,
            T=2,
            G=8,
            H=160,
            P=128,
            lengths=(129,),
            dtype=jnp.float32,
        ),
        value_dim=128,
    ),
)
