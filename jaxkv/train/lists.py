"""The list of a training document: lines of nouns, and which of them are many."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.evaluate import language
from jaxkv.train.draws import below, between
from jaxkv.train.recipe import NOTE
from jaxkv.train.sentences import ADJECTIVES, BODY, FIRST_NOUN, NOUNS, word

COMMON, FREQUENT, RANKS = 4, 3, 12
SHARE = (0.25, 0.6)
"""The range of the share of a list that its common words are together."""

ZIPF = np.cumsum(1 / np.arange(1, RANKS + 1) ** 2)


def draw_list(
    once: Iterator,
    each: Iterator,
    order_X: Float[Array, " Z"],
    kind_S: Int[Array, " S"],
) -> tuple[Int[Array, "S 8"], Int[Array, " 7"]]:
    """(a line for each segment, the words of the question and its answer).

    Half the lists have four common words, as likely as each other, among any nouns:
    "common : w1 w2 w3 w4 .". The others draw from twelve nouns by Zipf's law with
    exponent 2: "frequent : w1 w2 w3 .". Both answers are in the order of the counts.
    """
    favourites = jnp.argsort(order_X[ADJECTIVES:])[-RANKS:]
    common = next(once) < 0.5
    share = between(next(once), SHARE)
    drawn_8S = jnp.stack([next(each) for _ in range(BODY)])

    one_of_four_8S = favourites[(drawn_8S / share * COMMON).astype(jnp.int32) % RANKS]
    any_8S = ((drawn_8S - share) / (1 - share) * NOUNS).astype(jnp.int32)
    common_8S = jnp.where(drawn_8S < share, one_of_four_8S, any_8S.clip(0, NOUNS - 1))
    edges = jnp.asarray(ZIPF / ZIPF[-1], jnp.float32)
    rank_8S = (drawn_8S[None] >= edges[:, None, None]).sum(axis=0)
    frequent_8S = favourites[rank_8S.clip(0, RANKS - 1)]
    noun_8S = jnp.where(common, common_8S, frequent_8S)

    low, high = language.LINE
    count_S = low + below(next(each), high - low + 1)
    there_8S = jnp.arange(BODY)[:, None] < count_S[None]
    counted_8S = there_8S & (kind_S == NOTE)[None]
    counts = jnp.zeros(NOUNS, jnp.int32).at[noun_8S].add(counted_8S.astype(jnp.int32))
    _, top = jax.lax.top_k(counts, COMMON)

    fourth = jnp.where(common, FIRST_NOUN + top[COMMON - 1], language.PAD)
    asked = jnp.stack(
        [
            jnp.where(common, word("common"), word("frequent")),
            jnp.asarray(word(":")),
            *(FIRST_NOUN + top[:FREQUENT]),
            fourth,
            jnp.asarray(word(".")),
        ]
    )
    return jnp.where(there_8S, FIRST_NOUN + noun_8S, language.PAD).T, asked
