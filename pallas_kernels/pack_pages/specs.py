"""The shapes that pack_pages and append_entries are tested and compiled at."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.call import Call, shape
from pallas_kernels.layout import entry_shape
from pallas_kernels.pack_pages import append_entries, pack_pages


@dataclass(frozen=True)
class Spec:
    """One call: S tokens to choose from, `pages` pages of P slots, T to append."""

    name: str
    B: int
    S: int
    J: int
    R: int
    H: int
    P: int
    pages: int
    T: int
    values: bool = True  # beside the keys; latents have none

    def calls(self, dtype: DTypeLike = jnp.bfloat16) -> tuple[Call, ...]:
        """The packing of a prompt, and the append of new tokens in place."""
        pool = (self.B, self.J, self.pages)
        entry = entry_shape(dtype, *pool, self.P, self.H, values=self.values)
        tiles = tuple(jax.tree.leaves(entry))
        slots = shape(jnp.int32, *pool, self.P)
        packed = dict(
            k=self._tokens(dtype, self.S),
            v=self._tokens(dtype, self.S) if self.values else None,
            token_position=shape(jnp.int32, self.B, self.S),
            owner=shape(jnp.int32, *pool),
            source=slots,
        )
        place = shape(jnp.int32, self.B, self.J, self.R, self.T)
        appended = dict(
            entry=entry,
            position=slots,
            k=self._tokens(dtype, self.T),
            v=self._tokens(dtype, self.T) if self.values else None,
            new_position=shape(jnp.int32, self.B, self.T),
            page=place,
            slot=place,
        )
        donated = ("entry", "position")
        return (
            Call(pack_pages, packed, pool=tiles),
            Call(append_entries, appended, pool=tiles, donated=donated),
        )

    def _tokens(self, dtype: DTypeLike, tokens: int) -> Any:
        return shape(dtype, self.B, tokens, self.J, self.R, self.H)


SPECS = (
    Spec("one page", B=1, S=5, J=1, R=1, H=64, P=64, pages=1, T=1),
    Spec("ragged", B=2, S=150, J=1, R=4, H=64, P=64, pages=7, T=1),
    Spec("groups", B=2, S=130, J=2, R=2, H=128, P=64, pages=5, T=3),
    Spec("short head", B=1, S=300, J=2, R=1, H=64, P=128, pages=3, T=1),
    Spec("wide head", B=1, S=100, J=1, R=8, H=256, P=64, pages=8, T=8),
    Spec("wide page", B=1, S=300, J=1, R=2, H=96, P=128, pages=6, T=2),
    Spec("latent", B=2, S=150, J=1, R=1, H=576, P=128, pages=3, T=1, values=False),
    Spec("small latent", B=1, S=90, J=2, R=2, H=96, P=64, pages=4, T=2, values=False),
)
