"""The sentences of a training document: facts, links, assignments, and filler.

Randomness comes as uniform numbers in [0, 1): `once` yields scalars, one a document,
and `each` yields arrays, one number a segment.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.evaluate import language
from jaxkv.train.draws import below, between, log_between, pick
from jaxkv.train.recipe import FACT, FILLER, LET, LINK, NOTE, Recipe

ADJECTIVES, NOUNS, VERBS = (
    len(language.ADJECTIVES),
    len(language.NOUNS),
    len(language.VERBS),
)
BODY = language.LONGEST
HOPS = 4
"""A variable is at most so many assignments away from its value."""


def word(text: str) -> int:
    """The id of a word."""
    return language.VOCABULARY.index(text)


FIRST_ADJECTIVE = word(language.ADJECTIVES[0])
FIRST_NOUN = word(language.NOUNS[0])
FIRST_VERB = word(language.VERBS[0])


class Sentences(NamedTuple):
    """One sentence a segment, absent words being <pad>, and what refers to what."""

    opening_S4: Int[Array, "S 4"]  # the A N V, let A N be, note
    body_S8: Int[Array, "S 8"]
    partner_S: Int[Array, " S"]  # the other fact of its key, or itself
    target_S: Int[Array, " S"]  # the fact that a link leads to
    parent_S: Int[Array, " S"]  # the assignment that is this one's value, or itself


def draw_sentences(
    once: Iterator,
    each: Iterator,
    order_X: Float[Array, " Z"],
    kind_S: Int[Array, " S"],
    line_S8: Int[Array, "S 8"],
    recipe: Recipe,
) -> Sentences:
    """A sentence of its kind for each segment that is one; `line` are a list's."""
    adjective_S, noun_S = _distinct_keys(once, each, order_X, recipe)
    verb_S = below(next(each), VERBS)
    place_S = jnp.arange(kind_S.size)
    source_S, partner_S = _partners(once, each, kind_S, recipe)
    single_S = (kind_S == FACT) & (partner_S == place_S)
    target_S, _ = pick(next(each), single_S, jnp.full_like(place_S, kind_S.size))
    parent_S = _parents(each, kind_S)

    adjective_S = FIRST_ADJECTIVE + adjective_S[source_S]
    key_noun_S = FIRST_NOUN + noun_S[source_S]
    verb_S = FIRST_VERB + verb_S[source_S]
    let_S = kind_S == LET
    opening_S4 = jnp.column_stack(
        [
            jnp.where(let_S, word("let"), word("the")),
            adjective_S,
            key_noun_S,
            jnp.where(let_S, word("be"), verb_S),
        ]
    )
    note_4 = jnp.array([word("note"), 0, 0, 0])
    opening_S4 = jnp.where((kind_S == NOTE)[:, None], note_4[None], opening_S4)
    opening_S4 = jnp.where((kind_S == FILLER)[:, None], 0, opening_S4)

    def key_of(other_S: Array) -> Array:
        """The key of another sentence, as a body."""
        words = jnp.column_stack([adjective_S[other_S], key_noun_S[other_S]])
        return jnp.pad(words, ((0, 0), (0, BODY - 2)))

    body_S8 = _values(each, noun_S[source_S])
    for chosen_S, other_S8 in (
        (kind_S == LINK, key_of(target_S)),
        (let_S & (parent_S != place_S), key_of(parent_S)),
        (kind_S == NOTE, line_S8),
        (kind_S == FILLER, _stock(once, kind_S)),
    ):
        body_S8 = jnp.where(chosen_S[:, None], other_S8, body_S8)
    return Sentences(opening_S4, body_S8, partner_S, target_S, parent_S)


def _partners(
    once: Iterator, each: Iterator, kind_S: Int[Array, " S"], recipe: Recipe
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """(where a fact's key is from, the other fact of its key); else itself.

    The first two have no partner, so that there is always something to ask about.
    """
    count = kind_S.size
    place_S, fact_S = jnp.arange(count), kind_S == FACT
    wants_S = next(each) < between(next(once), recipe.seconds)
    wants_S &= fact_S & (place_S > 2)
    earlier_S, _ = pick(next(each), fact_S, place_S)
    # Two facts may want the same partner, or one that is a second itself: the first of
    # them gets it, and the others keep keys of their own.
    claim_S = jnp.full(count, count)
    claim_S = claim_S.at[earlier_S].min(jnp.where(wants_S, place_S, count))
    second_S = wants_S & (claim_S[earlier_S] == place_S) & ~wants_S[earlier_S]
    second_S &= earlier_S >= 2
    source_S = jnp.where(second_S, earlier_S, place_S)
    taken_S = jnp.where(second_S, earlier_S, count)
    return source_S, source_S.at[taken_S].set(place_S, mode="drop")


def _parents(each: Iterator, kind_S: Int[Array, " S"]) -> Int[Array, " S"]:
    """For each assignment an earlier one, at most four steps from a value."""
    place_S = jnp.arange(kind_S.size)
    share_S = next(each)
    level_S = jnp.where(kind_S == LET, below(next(each), HOPS + 1), -1)
    parent_S = place_S
    for level in range(1, HOPS + 1):
        found_S, count_S = pick(share_S, level_S == level - 1, place_S)
        mine_S = (level_S == level) & (count_S > 0)
        parent_S = jnp.where(mine_S, found_S, parent_S)
    return parent_S


def _distinct_keys(
    once: Iterator, each: Iterator, order_X: Float[Array, " Z"], recipe: Recipe
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """Different (adjective, noun) pairs from a random subset of each.

    The grid of `a` adjectives and `n` nouns is cut into as many runs of cells as there
    are segments, and one cell of each run is taken, in random order: distinct without a
    rejection.
    """
    jitter_S, shuffle_S = next(each), next(each)
    count = jitter_S.size
    a = log_between(next(once), max(2, -(-count // NOUNS)), ADJECTIVES)
    n = log_between(next(once), -(-count // a), NOUNS)
    whole = next(once) < recipe.whole
    a, n = jnp.where(whole, ADJECTIVES, a), jnp.where(whole, NOUNS, n)
    run_S = jnp.arange(count + 1) * (a * n) // count
    cell_S = run_S[:-1] + below(jitter_S, run_S[1:] - run_S[:-1])
    cell_S = cell_S[jnp.argsort(shuffle_S)]
    adjectives = jnp.argsort(order_X[:ADJECTIVES])
    nouns = jnp.argsort(order_X[ADJECTIVES:])
    return adjectives[cell_S // n], nouns[cell_S % n]


def _values(each: Iterator, noun_S: Int[Array, " S"]) -> Int[Array, "S 8"]:
    """One to eight nouns after each noun: a successor of the last one, or any."""
    successors = jnp.asarray(language.SUCCESSORS, jnp.int32)
    count_S = 1 + below(next(each), BODY)
    last_S, values = noun_S, []
    for i in range(BODY):
        likely_S = successors[last_S, below(next(each), successors.shape[1])]
        any_S = below(next(each), NOUNS)
        last_S = jnp.where(next(each) < language.CHAIN, likely_S, any_S)
        values.append(jnp.where(i < count_S, FIRST_NOUN + last_S, language.PAD))
    return jnp.column_stack(values)


def _stock(once: Iterator, kind_S: Int[Array, " S"]) -> Int[Array, "S 8"]:
    """The stock sentences in turn, from any of them."""
    table = np.zeros((len(language.STOCK), BODY), np.int32)
    for i, sentence in enumerate(language.STOCK):
        words = sentence.removesuffix(" .").split()
        table[i, : len(words)] = [word(text) for text in words]
    filler_S = (kind_S == FILLER).astype(jnp.int32)
    first = (next(once) * len(table)).astype(jnp.int32)
    return jnp.asarray(table)[(first + jnp.cumsum(filler_S)) % len(table)]
