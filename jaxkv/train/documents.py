"""Training documents, drawn on the device: statements, repeats of them and questions.

A document is a row of segments in the language of `jaxkv.evaluate.language`:

    statement  a new key, or a second value for an earlier one     9 words
    again      an earlier statement, word for word                 9
    one        recall the A N V x1 x2 x3 x4 .                     10
    both       recall both the A N V x1 .. x4 and y1 .. y4 .      16
    two        recall the A2 N2 V2 and the A1 N1 V1 x1 .. y4 .    24

Every row draws its own habits: how often it repeats itself, where a phase of questions
begins, how few adjectives and nouns its keys share, how often a key has two values. A
question never has two answers: "one" and "two" ask about keys with one value, "both"
about keys with two. Some rows are instead "repeat :" and their own first half.

All of it is a function of a key: no state, no file, no host. Segments are built as
arrays of equal width, then laid end to end by a cumulative sum, a binary search and a
gather.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkv.evaluate import language

STATEMENT, AGAIN, ONE, BOTH, TWO = range(5)
LENGTHS = np.array([9, 9, 10, 16, 24], np.int32)
WIDTH = 24
ADJECTIVES, NOUNS, VERBS = (
    len(language.ADJECTIVES),
    len(language.NOUNS),
    len(language.VERBS),
)


def _word(text: str) -> int:
    return language.VOCABULARY.index(text)


THE, STOP, AND = _word("the"), _word("."), _word("and")
RECALL, BOTH_WORD, REPEAT, COLON = map(_word, ("recall", "both", "repeat", ":"))
FIRST_ADJECTIVE = _word(language.ADJECTIVES[0])
FIRST_NOUN = _word(language.NOUNS[0])
FIRST_VERB = _word(language.VERBS[0])


def _spans(*spans: tuple[int, int]) -> np.ndarray:
    mask_WX = np.zeros((5, WIDTH), bool)
    for kind, (start, stop) in enumerate(spans):
        mask_WX[kind, start:stop] = True
    return mask_WX


ANSWER = _spans((0, 0), (0, 0), (5, 10), (6, 16), (10, 24))
"""`ANSWER[kind, i]`: is word i of such a segment part of an answer?"""

RECALLED = ANSWER | _spans((0, 0), (4, 9), (0, 0), (0, 0), (0, 0))
"""The words that looking back predicts for certain: answers, and values said again."""


@dataclass(frozen=True)
class Recipe:
    """What documents are made of: shares, and ranges that rows draw theirs from.

    Attributes:
      again: range of the share of a row's segments that repeat an earlier statement.
      phase: range of where the phase of questions begins, as a share of the row.
      phases: share of rows that have such a phase.
      asked: share of segments that ask, (before the phase, in it).
      kinds: shares of the questions one, both, two.
      seconds: range of the share of statements that try to give a key its second value.
      whole: share of rows whose keys come from all words, not from a small subset.
      repeats: share of rows that are "repeat :" and their first half.
      gaps: share of rows whose positions jump ahead between segments.
      max_position: positions stay below it.
      rest: weight of a word that is not recalled; recalled words weigh 1.
    """

    again: tuple[float, float] = (0.1, 0.5)
    phase: tuple[float, float] = (0.3, 0.9)
    phases: float = 0.85
    asked: tuple[float, float] = (0.05, 0.95)
    kinds: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seconds: tuple[float, float] = (0.0, 0.3)
    whole: float = 0.25
    repeats: float = 0.1
    gaps: float = 0.3
    max_position: int = 8192
    rest: float = 0.2


def documents(
    key: Key[Array, ""], rows: int, length: int, recipe: Recipe | None = None
) -> dict[str, Array]:
    """`rows` documents of `length` words; in jit, all but `key` are static.

    Returns a dict of arrays [rows, length]:
      tokens: int32 ids. position: int32, increasing along a row, below
      `recipe.max_position`. weight: float32, of predicting the word at this place (0
      for `<bos>`). answer: int32, 0 or, for the words of an answer, a number that is
      its own in the row
        and is at most `segments(length)`.

    Raises:
      ValueError: `length` is below 32 words or above `recipe.max_position`.
    """
    recipe = recipe or Recipe()
    if not 32 <= length <= recipe.max_position:
        raise ValueError(
            f"A document has 32 to {recipe.max_position} words, not {length}."
        )
    return jax.vmap(lambda k: _row(k, length, recipe))(jax.random.split(key, rows))


def segments(length: int) -> int:
    """The most segments that a document of `length` words can have."""
    return length // 9 + 1


def _row(key: Key[Array, ""], length: int, recipe: Recipe) -> dict[str, Array]:
    """One document."""
    keys = jax.random.split(key, 6)
    count = segments(length)
    repeats = jax.random.bernoulli(keys[0], recipe.repeats)
    kind_S = _kinds(keys[1], count, repeats, recipe)
    sentence_SX, partner_S = _statements(keys[2], count, recipe)
    kind_S, first_S, second_S = _targets(keys[3], kind_S, partner_S)
    words_SW = _words(kind_S, sentence_SX[first_S], sentence_SX[second_S])

    length_S = jnp.asarray(LENGTHS)[kind_S]
    end_S = jnp.cumsum(length_S)
    gap_S = _gaps(keys[4], count, recipe.max_position - length, ~repeats, recipe)
    half = jnp.where(repeats, _last_below(end_S, (length - 3) // 2), length)

    place_T = jnp.arange(length)
    source_T = jnp.where(place_T <= half, place_T, place_T - half - 2) - 1
    seg_T = jnp.searchsorted(end_S, source_T, side="right")
    offset_T = jnp.maximum(source_T - (end_S - length_S)[seg_T], 0)
    kind_T = kind_S[seg_T]

    tokens_T = words_SW[seg_T, offset_T]
    tokens_T = jnp.where(place_T == half + 1, REPEAT, tokens_T)
    tokens_T = jnp.where(place_T == half + 2, COLON, tokens_T)
    tokens_T = tokens_T.at[0].set(language.BOS)
    copied_T = (place_T > half + 2) & (place_T <= 2 * half + 2)
    started_T = place_T > 0
    recalled_T = jnp.asarray(RECALLED)[kind_T, offset_T] | copied_T
    answer_T = jnp.asarray(ANSWER)[kind_T, offset_T] & started_T
    return {
        "tokens": tokens_T,
        "position": jnp.where(started_T, place_T + gap_S[seg_T], 0),
        "weight": jnp.where(recalled_T, 1.0, recipe.rest)
        * started_T.astype(jnp.float32),
        "answer": jnp.where(answer_T, seg_T + 1, 0),
    }


def _kinds(
    key: Key[Array, ""], count: int, plain: Bool[Array, ""], recipe: Recipe
) -> Int[Array, " S"]:
    """What each segment is; the first two are statements, a plain row asks nothing."""
    keys = jax.random.split(key, 6)
    start = _between(keys[0], recipe.phase)
    start = jnp.where(jax.random.bernoulli(keys[1], recipe.phases), start, 2.0)
    place_S = jnp.arange(count) / count
    before, within = recipe.asked
    chance_S = jnp.where(place_S >= start, within, before)
    asks_S = (jax.random.uniform(keys[2], (count,)) < chance_S) & ~plain
    again = _between(keys[3], recipe.again)
    again_S = jax.random.uniform(keys[4], (count,)) < again
    question_S = jax.random.choice(
        keys[5], jnp.array([ONE, BOTH, TWO]), (count,), p=jnp.array(recipe.kinds)
    )
    kind_S = jnp.where(asks_S, question_S, jnp.where(again_S, AGAIN, STATEMENT))
    return kind_S.at[:2].set(STATEMENT)


def _statements(
    key: Key[Array, ""], count: int, recipe: Recipe
) -> tuple[Int[Array, "S 9"], Int[Array, " S"]]:
    """Sentences, and where each one's partner of the same key is (itself if none).

    The first two have no partner, so that there is always something to ask about.
    """
    keys = jax.random.split(key, 6)
    adjective_S, noun_S = _distinct_keys(keys[0], count, recipe)
    verb_S = jax.random.randint(keys[1], (count,), 0, VERBS)

    place_S = jnp.arange(count)
    rate = _between(keys[2], recipe.seconds)
    wants_S = (jax.random.uniform(keys[3], (count,)) < rate) & (place_S > 2)
    earlier_S = 2 + _below(keys[4], place_S - 2)
    # Two statements may want the same partner, or one that is a second itself: the
    # first of them gets it, and the others keep keys of their own.
    claim_S = (
        jnp.full(count, count).at[earlier_S].min(jnp.where(wants_S, place_S, count))
    )
    second_S = wants_S & (claim_S[earlier_S] == place_S) & ~wants_S[earlier_S]
    source_S = jnp.where(second_S, earlier_S, place_S)
    partner_S = source_S.at[jnp.where(second_S, earlier_S, count)].set(
        place_S, mode="drop"
    )

    adjective_S, noun_S, verb_S = (
        adjective_S[source_S],
        noun_S[source_S],
        verb_S[source_S],
    )
    value_SX = _values(keys[5], noun_S)
    sentence_SX = jnp.column_stack(
        [
            jnp.full(count, THE),
            FIRST_ADJECTIVE + adjective_S,
            FIRST_NOUN + noun_S,
            FIRST_VERB + verb_S,
            FIRST_NOUN + value_SX,
            jnp.full(count, STOP),
        ]
    )
    return sentence_SX, partner_S


def _distinct_keys(
    key: Key[Array, ""], count: int, recipe: Recipe
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """`count` different (adjective, noun) pairs from a random subset of each.

    The grid of `a` adjectives and `n` nouns is cut into `count` runs of cells and one
    cell of each run is taken, in random order: distinct without a rejection.
    """
    keys = jax.random.split(key, 7)
    a_min = max(2, -(-count // NOUNS))
    a = _log_between(keys[0], a_min, ADJECTIVES)
    n = _log_between(keys[1], -(-count // a), NOUNS)
    whole = jax.random.bernoulli(keys[2], recipe.whole)
    a, n = jnp.where(whole, ADJECTIVES, a), jnp.where(whole, NOUNS, n)
    run_S = jnp.arange(count + 1) * (a * n) // count
    cell_S = run_S[:-1] + _below(keys[3], run_S[1:] - run_S[:-1])
    cell_S = jax.random.permutation(keys[4], cell_S)
    adjectives = jax.random.permutation(keys[5], ADJECTIVES)
    nouns = jax.random.permutation(keys[6], NOUNS)
    return adjectives[cell_S // n], nouns[cell_S % n]


def _values(key: Key[Array, ""], noun_S: Int[Array, " S"]) -> Int[Array, "S 4"]:
    """Four nouns after each noun: a successor of the last one, or any."""
    keys = jax.random.split(key, 3)
    shape = (language.VALUE, noun_S.size)
    chain_XS = jax.random.bernoulli(keys[0], language.CHAIN, shape)
    likely_XS = jax.random.randint(keys[1], shape, 0, language.SUCCESSORS.shape[1])
    any_XS = jax.random.randint(keys[2], shape, 0, NOUNS)
    successors = jnp.asarray(language.SUCCESSORS, jnp.int32)
    last_S, values = noun_S, []
    for x in range(language.VALUE):
        likely_S = successors[last_S, likely_XS[x]]
        last_S = jnp.where(chain_XS[x], likely_S, any_XS[x])
        values.append(last_S)
    return jnp.column_stack(values)


def _targets(
    key: Key[Array, ""], kind_S: Int[Array, " S"], partner_S: Int[Array, " S"]
) -> tuple[Int[Array, " S"], Int[Array, " S"], Int[Array, " S"]]:
    """The statements that each segment speaks of: (kind, first, second).

    A "both" before any key has two values becomes a "one".
    """
    keys = jax.random.split(key, 3)
    statement_S = (kind_S == STATEMENT).astype(jnp.int32)
    before_S = jnp.cumsum(statement_S) - statement_S
    place_S = jnp.arange(kind_S.size)
    single_S, later_S = partner_S == place_S, partner_S < place_S

    singles_S, listed_S = _listed(single_S, before_S)
    at_S = _below(keys[0], singles_S)
    other_S = (at_S + 1 + _below(keys[1], singles_S - 1)) % singles_S.clip(1)
    one_S, two_S = listed_S[at_S], listed_S[other_S]

    pairs_S, listed_S = _listed(later_S, before_S)
    late_S = listed_S[_below(keys[2], pairs_S)]

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


def _words(
    kind_S: Int[Array, " S"], a_SX: Int[Array, "S 9"], b_SX: Int[Array, "S 9"]
) -> Int[Array, "S 24"]:
    """The words of each segment about sentences a and b, padded at the end."""
    word = lambda i: jnp.full((kind_S.size, 1), i)  # noqa: E731
    recall = word(RECALL)
    kinds = [
        [a_SX],
        [a_SX],
        [recall, a_SX],
        [recall, word(BOTH_WORD), a_SX[:, :8], word(AND), b_SX[:, 4:]],
        [recall, b_SX[:, :4], word(AND), a_SX, b_SX],
    ]
    padded = []
    for parts in kinds:
        words_SX = jnp.concatenate(parts, axis=1)
        padded.append(jnp.pad(words_SX, ((0, 0), (0, WIDTH - words_SX.shape[1]))))
    return jnp.stack(padded)[kind_S, jnp.arange(kind_S.size)]


def _gaps(
    key: Key[Array, ""], count: int, room: int, may: Bool[Array, ""], recipe: Recipe
) -> Int[Array, " S"]:
    """How far each segment is moved ahead: a few jumps, together at most `room`."""
    keys = jax.random.split(key, 5)
    may &= jax.random.bernoulli(keys[0], recipe.gaps)
    jumps = _between(keys[1], (1.0, 8.0))
    jump_S = jax.random.bernoulli(keys[2], jumps / count, (count,))
    size_S = jnp.where(jump_S, jax.random.uniform(keys[3], (count,)), 0.0)
    share_S = jnp.cumsum(size_S) / jnp.maximum(size_S.sum(), 1e-6)
    total = jnp.where(may, room * jax.random.uniform(keys[4]), 0.0)
    return (total * share_S.clip(0.0, 1.0)).astype(jnp.int32)


def _last_below(end_S: Int[Array, " S"], limit: int) -> Int[Array, ""]:
    return jnp.where(end_S <= limit, end_S, 0).max()


def _between(key: Key[Array, ""], bounds: tuple[float, float]) -> Float[Array, ""]:
    return jax.random.uniform(key, minval=bounds[0], maxval=bounds[1])


def _log_between(
    key: Key[Array, ""], low: int | Int[Array, ""], high: int
) -> Int[Array, ""]:
    """An integer in [low, high], uniform in its logarithm."""
    low = jnp.asarray(low, jnp.float32)
    drawn = jnp.exp(jax.random.uniform(key) * jnp.log((high + 1.0) / low)) * low
    return jnp.clip(drawn.astype(jnp.int32), low.astype(jnp.int32), high)


def _below(key: Key[Array, ""], bound_S: Int[Array, " S"]) -> Int[Array, " S"]:
    """An integer in [0, bound) each; 0 where bound is 0 or less."""
    share_S = jax.random.uniform(key, bound_S.shape)
    drawn_S = (share_S * bound_S.astype(jnp.float32)).astype(jnp.int32)
    return drawn_S.clip(0, jnp.maximum(bound_S - 1, 0))
