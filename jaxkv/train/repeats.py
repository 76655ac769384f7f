"""Rows that repeat: a context, then "repeat" and parts of it, word for word.

    repeat : <the context from its beginning>
    repeat : <any eight words of it> <the words that follow them>
    repeat from the A N V <the words that follow them>

A row does one of the three. The first is a question of its own; the second is how a
long context is repeated in chunks; the third is verbatim recall.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxkv.evaluate.language import QUOTED
from jaxkv.train.draws import below, between, pick
from jaxkv.train.sentences import word

WHOLE, QUOTES = 0.25, 0.5
"""The shares of the rows that repeat all of the context, and from sentences of it."""

CONTEXT = (0.4, 0.8)
"""The range of the share of a row that is context, unless all of it is repeated."""

QUOTE = (24.0, 64.0)
"""The range of the words of a quotation, with "repeat from"."""


class Copies(NamedTuple):
    """What stands at each place of a row that repeats."""

    context: Int[Array, ""]  # the last place of the context
    marker_T: Int[Array, " T"]  # "repeat", ":" or "from", else 0
    source_T: Int[Array, " T"]  # the place whose word it is, its own in the context
    known_T: Bool[Array, " T"]  # enough has been said to tell where the copy goes on
    quote_T: Int[Array, " T"]  # the number of the quotation asked for, from 1; else 0


def draw_copies(
    once: Iterator,
    each: Iterator,
    quotable_S: Bool[Array, " S"],
    end_S: Int[Array, " S"],
    length: int,
) -> Copies:
    """The copies of a row of `length` words, whose segments end before `end`.

    Quotations begin with quotable segments; the first segment has to be one.
    """
    manner = next(once)
    whole, quotes = manner < WHOLE, manner >= 1 - QUOTES
    limit = (between(next(once), CONTEXT) * length).astype(jnp.int32)
    limit = jnp.where(whole, (length - 3) // 2, limit)
    context = jnp.where(end_S <= limit, end_S, 0).max()
    size = between(next(once), QUOTE).astype(jnp.int32)
    size = jnp.where(whole, context, jnp.minimum(size, context)) + 2

    begin_S = jnp.concatenate([jnp.zeros(1, end_S.dtype), end_S[:-1]]) + 1
    fits_S = quotable_S & (begin_S + size - 2 <= context + 1)
    chosen_S, count_S = pick(next(each), fits_S, jnp.full_like(end_S, end_S.size))
    sentence_S = jnp.where(count_S > 0, begin_S[chosen_S], 1)
    anywhere_S = 1 + below(next(each), context - size + 3)
    origin_S = jnp.where(whole, 1, jnp.where(quotes, sentence_S, anywhere_S))

    place_T = jnp.arange(length)
    after_T = place_T - context - 1
    copying_T = after_T >= 0
    number_T = (after_T // size).clip(0, end_S.size - 1)
    offset_T = after_T % size
    second = jnp.where(quotes, word("from"), word(":"))
    marker_T = jnp.where(offset_T == 0, word("repeat"), second)
    marker_T = jnp.where(copying_T & (offset_T < 2), marker_T, 0)
    source_T = jnp.where(copying_T, origin_S[number_T] + offset_T - 2, place_T)
    lead = jnp.where(whole, 0, jnp.where(quotes, 4, 8))
    known_T = copying_T & (offset_T - 2 >= lead)
    asked_T = known_T & (offset_T - 2 < lead + QUOTED)
    quote_T = jnp.where(asked_T, number_T + 1, 0)
    return Copies(context, marker_T, source_T.clip(0, length - 1), known_T, quote_T)
