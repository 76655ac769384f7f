"""Attention: what every way of making cache entries has in common, the protocol.

    entries          queries, keys and values of new tokens
    trail            what the tokens after them need of the last ones
    attend_prompt    the tokens attend to each other
    attend_entries   queries attend to entries in any order
    attend_pages     queries attend to a cache
    output           what the heads gave, through W_o

Queries have a form of their own between `entries` and the attending; `asked` gives them
as they meet the entries, which is how scores look at them. A module with no values of
their own gives None for them: the first `value_dim` numbers of a key are its value.

A module may look back: make a token's entry of the tokens before it, too. What it needs
of those is their trail, which a cache carries from one call to the next.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxkv.cache.pages import Pages

Values = Any  # Float[Array, "B T K E"], or None
Trail = Any  # Float[Array, "B K ..."], or None


class Attention(nnx.Module):
    """One layer's attention; N query heads read the K rows that it caches."""

    scale: float  # of the logits of `asked` queries and keys
    value_dim: int  # E, numbers of a row's value

    @property
    @abstractmethod
    def inverse_frequencies(self) -> np.ndarray:
        """RoPE's, in radians a token, of the last numbers of a key; fp32."""

    @property
    def key_part(self) -> Bool[Array, "K H"] | None:
        """The numbers of an entry that are its key's, if its value's are others."""
        return None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        segment: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Causal attention of a whole sequence with itself, in each of its segments."""
        heads, _ = self.attend_prompt(*self.entries(x, position), segment)
        return self.output(heads)

    @abstractmethod
    def entries(
        self,
        x: Float[Array, "B T D"],
        position: Int[Array, "B T"],
        trail: Trail = None,
    ) -> tuple[Float[Array, "B T N Q"], Float[Array, "B T K H"], Values]:
        """Queries, keys and values of new tokens.

        trail: of the tokens right before the first of these; None where there are none.
        """

    def trail(
        self,
        x: Float[Array, "B T D"],
        length: Int[Array, " B"],
        before: Trail = None,
    ) -> Trail:
        """What tokens need that come after each row's first `length` of these.

        before: the trail that these came after. None from a module that makes each
        entry of its own token alone.
        """
        return None

    @abstractmethod
    def asked(self, q: Float[Array, "B T N Q"]) -> Float[Array, "B T N H"]:
        """The queries as they meet the keys."""

    @abstractmethod
    def attend_prompt(
        self,
        q: Float[Array, "B S N Q"],
        k: Float[Array, "B S K H"],
        v: Values,
        segment: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S N U"], Float[Array, "B S N"] | None]:
        """Causal attention among a prompt's own tokens, by slot order: heads, lse.

        lse is None where it is not known (`causal_attention_and_lse`).
        """

    @abstractmethod
    def attend_entries(
        self,
        q: Float[Array, "B T N Q"],
        k: Float[Array, "B S K H"],
        v: Values,
        q_position: Int[Array, "B T"],
        k_position: Int[Array, " B #K S"],
    ) -> tuple[Float[Array, "B T N U"], Float[Array, "B T N"]]:
        """Attention to the keys with 0 <= k_position <= q_position: heads, lse."""

    @abstractmethod
    def attend_pages(
        self,
        q: Float[Array, "B T N Q"],
        pages: Pages,
        position: Int[Array, "B T"],
        layer: int = 0,
        *,
        return_logits: bool = False,
    ) -> tuple[
        Float[Array, "B T N U"],
        Float[Array, "B J R T G"],
        Float[Array, "B J pages T G P"] | None,
    ]:
        """Attention to one layer's pages: heads, lse, and every slot's logit if asked.

        layer: of the pool's span; logits are of pools of one layer only.
        """

    @abstractmethod
    def output(self, heads: Float[Array, "B T N U"]) -> Float[Array, "B T D"]:
        """What the heads gave, through W_o."""

    @abstractmethod
    def of_values(self) -> Float[Array, "K G E D"]:
        """What each query head makes of a cached value: W_o, behind what leads to it.

        out = sum_n a_n v W_n, with head n's attention a_n.
        """
