"""The statements of a training document, and which of them its segments speak of.

Randomness comes as uniform numbers in [0, 1): `once` yields scalars, one a document,
and `each` yields arrays, one number a segment.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.evaluate import language
from jaxkv.train.recipe import BOTH, ONE, STATEMENT, Recipe

ADJECTIVES, NOUNS, VERBS = (
    len(language.ADJECTIVES),
    len(language.NOUNS),
    len(language.VERBS),
)

THE, STOP = language.VOCABULARY.index("the"), language.VOCABULARY.index(".")
FIRST_ADJECTIVE = language.VOCABULARY.index(language.ADJECTIVES[0])
FIRST_NOUN = language.VOCABULARY.index(language.NOUNS[0])
FIRST_VERB = language.VOCABULARY.index(language.VERBS[0])


def draw_statements(
    once: Iterator, each: Iterator, order_X: Float[Array, " Z"], recipe: Recipe
) -> tuple[Int[Array, "S 9"], Int[Array, " S"]]:
    """Sentences, and where each one's partner of the same key is (itself if none).

    The first two have no partner, so that there is always something to ask about.
    """
    adjective_S, noun_S = _distinct_keys(once, each, order_X, recipe)
    verb_S = below(next(each), VERBS)
    count = verb_S.size

    place_S = jnp.arange(count)
    wants_S = (next(each) < between(next(once), recipe.seconds)) & (place_S > 2)
    earlier_S = 2 + below(next(each), place_S - 2)
    # Two statements may want the same partner, or one that is a second itself: the
    # first of them gets it, and the others keep keys of their own.
    claim_S = jnp.full(count, count)
    claim_S = claim_S.at[earlier_S].min(jnp.where(wants_S, place_S, count))
    second_S = wants_S & (claim_S[earlier_S] == place_S) & ~wants_S[earlier_S]
    source_S = jnp.where(second_S, earlier_S, place_S)
    taken_S = jnp.where(second_S, earlier_S, count)
    partner_S = source_S.at[taken_S].set(place_S, mode="drop")

    noun_S = noun_S[source_S]
    columns = [
        jnp.full(count, THE),
        FIRST_ADJECTIVE + adjective_S[source_S],
        FIRST_NOUN + noun_S,
        FIRST_VERB + verb_S[source_S],
        FIRST_NOUN + _values(each, noun_S),
        jnp.full(count, STOP),
    ]
    return jnp.column_stack(columns), partner_S


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


def _values(each: Iterator, noun_S: Int[Array, " S"]) -> Int[Array, "S 4"]:
    """Four nouns after each noun: a successor of the last one, or any."""
    successors = jnp.asarray(language.SUCCESSORS, jnp.int32)
    last_S, values = noun_S, []
    for _ in range(language.VALUE):
        likely_S = successors[last_S, below(next(each), successors.shape[1])]
        any_S = below(next(each), NOUNS)
        last_S = jnp.where(next(each) < language.CHAIN, likely_S, any_S)
        values.append(last_S)
    return jnp.column_stack(values)


def draw_targets(
    each: Iterator, kind_S: Int[Array, " S"], partner_S: Int[Array, " S"]
) -> tuple[Int[Array, " S"], Int[Array, " S"], Int[Array, " S"]]:
    """The statements that each segment speaks of: (kind, first, second).

    A "both" before any key has two values becomes a "one".
    """
    statement_S = (kind_S == STATEMENT).astype(jnp.int32)
    before_S = jnp.cumsum(statement_S) - statement_S
    place_S = jnp.arange(kind_S.size)

    singles_S, listed_S = _listed(partner_S == place_S, before_S)
    at_S = below(next(each), singles_S)
    other_S = (at_S + 1 + below(next(each), singles_S - 1)) % singles_S.clip(1)
    one_S, two_S = listed_S[at_S], listed_S[other_S]

    pairs_S, listed_S = _listed(partner_S < place_S, before_S)
    late_S = listed_S[below(next(each), pairs_S)]

    kind_S = jnp.where((kind_S == BOTH) & (pairs_S == 0), ONE, kind_S)
    both_S = kind_S == BOTH
    first_S = jnp.where(both_S, partner_S[late_S], one_S)
    first_S = jnp.where(kind_S == STATEMENT, before_S, first_S)
    return kind_S, first_S, jnp.where(both_S, late_S, two_S)


def _listed(
    chosen_S: Bool[Array, " S"], before_S: Int[Array, " S"]
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """How many of the first `before` statements are chosen, and the chosen in order."""
    number_S = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(chosen_S)])
    return number_S[before_S], jnp.argsort(~chosen_S, stable=True)


def between(share: Float[Array, ""], bounds: tuple[float, float]) -> Float[Array, ""]:
    """The place in [low, high) at `share` of the way."""
    return bounds[0] + (bounds[1] - bounds[0]) * share


def log_between(
    share: Float[Array, ""], low: int | Int[Array, ""], high: int
) -> Int[Array, ""]:
    """An integer in [low, high], uniform in its logarithm."""
    low = jnp.asarray(low, jnp.float32)
    drawn = jnp.exp(share * jnp.log((high + 1.0) / low)) * low
    return jnp.clip(drawn.astype(jnp.int32), low.astype(jnp.int32), high)


def below(
    share_S: Float[Array, " S"], bound: int | Int[Array, " S"]
) -> Int[Array, " S"]:
    """An integer in [0, bound) each; 0 where bound is 0 or less."""
    bound = jnp.asarray(bound, jnp.int32)
    drawn_S = (share_S * bound.astype(jnp.float32)).astype(jnp.int32)
    return drawn_S.clip(0, jnp.maximum(bound - 1, 0))
