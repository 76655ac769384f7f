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

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkv.evaluate import language
from jaxkv.train.recipe import AGAIN, BOTH, ONE, STATEMENT, TWO, Recipe
from jaxkv.train.statements import (
    ADJECTIVES,
    NOUNS,
    between,
    draw_statements,
    draw_targets,
)

LENGTHS = np.array([9, 9, 10, 16, 24], np.int32)
WIDTH = 24


ONCE, EACH = 11, 25
"""The uniform numbers that a document uses: for all of it, and for each segment."""


def _word(text: str) -> int:
    return language.VOCABULARY.index(text)


RECALL, BOTH_WORD, AND = _word("recall"), _word("both"), _word("and")
REPEAT, COLON = _word("repeat"), _word(":")


def _spans(*spans: tuple[int, int]) -> np.ndarray:
    mask_WX = np.zeros((5, WIDTH), bool)
    for kind, (start, stop) in enumerate(spans):
        mask_WX[kind, start:stop] = True
    return mask_WX


ANSWER = _spans((0, 0), (0, 0), (5, 10), (6, 16), (10, 24))
"""`ANSWER[kind, i]`: is word i of such a segment part of an answer?"""

RECALLED = ANSWER | _spans((0, 0), (4, 9), (0, 0), (0, 0), (0, 0))
"""The words that looking back predicts for certain: answers, and values said again."""


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
    # One draw for all rows and purposes: a generator costs seconds to compile.
    count = segments(length)
    sizes = np.cumsum([ONCE, EACH * count, ADJECTIVES + NOUNS])
    drawn_BX = jax.random.uniform(key, (rows, int(sizes[-1])))
    once_BX, each_BX, order_BX = jnp.split(drawn_BX, sizes[:-1], axis=1)
    each_BXS = each_BX.reshape(rows, EACH, count)
    row = partial(_row, length=length, recipe=recipe)
    return jax.vmap(row)(once_BX, each_BXS, order_BX)


def segments(length: int) -> int:
    """The most segments that a document of `length` words can have."""
    return length // 9 + 1


def _row(
    once_X: Float[Array, " X"],
    each_XS: Float[Array, "Y S"],
    order_X: Float[Array, " Z"],
    length: int,
    recipe: Recipe,
) -> dict[str, Array]:
    """One document, from uniform numbers: of the row, of each segment, of each word."""
    once, each = iter(once_X), iter(each_XS)
    repeats = next(once) < recipe.repeats
    kind_S = _kinds(once, each, repeats, recipe)
    sentence_SX, partner_S = draw_statements(once, each, order_X, recipe)
    kind_S, first_S, second_S = draw_targets(each, kind_S, partner_S)
    words_SW = _words(kind_S, sentence_SX[first_S], sentence_SX[second_S])

    length_S = jnp.asarray(LENGTHS)[kind_S]
    end_S = jnp.cumsum(length_S)
    gap_S = _gaps(once, each, recipe.max_position - length, ~repeats, recipe)
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
    weight_T = jnp.where(recalled_T, 1.0, recipe.rest)
    answer_T = jnp.asarray(ANSWER)[kind_T, offset_T] & started_T
    return {
        "tokens": tokens_T,
        "position": jnp.where(started_T, place_T + gap_S[seg_T], 0),
        "weight": weight_T * started_T.astype(jnp.float32),
        "answer": jnp.where(answer_T, seg_T + 1, 0),
    }


def _kinds(
    once: Iterator, each: Iterator, plain: Bool[Array, ""], recipe: Recipe
) -> Int[Array, " S"]:
    """What each segment is; the first two are statements, a plain row asks nothing."""
    start = between(next(once), recipe.phase)
    start = jnp.where(next(once) < recipe.phases, start, 2.0)
    ask_S, again_S, question_S = next(each), next(each), next(each)
    place_S = jnp.arange(ask_S.size) / ask_S.size
    before, within = recipe.asked
    asks_S = (ask_S < jnp.where(place_S >= start, within, before)) & ~plain
    one, both, _ = recipe.kinds
    question_S = jnp.where(
        question_S < one, ONE, jnp.where(question_S < one + both, BOTH, TWO)
    )
    again_S = again_S < between(next(once), recipe.again)
    kind_S = jnp.where(asks_S, question_S, jnp.where(again_S, AGAIN, STATEMENT))
    return kind_S.at[:2].set(STATEMENT)


def _words(
    kind_S: Int[Array, " S"], a_SX: Int[Array, "S 9"], b_SX: Int[Array, "S 9"]
) -> Int[Array, "S 24"]:
    """The words of each segment about sentences a and b, padded at the end."""
    recall, both, conjunction = (
        jnp.full((kind_S.size, 1), word) for word in (RECALL, BOTH_WORD, AND)
    )
    kinds = [
        [a_SX],
        [a_SX],
        [recall, a_SX],
        [recall, both, a_SX[:, :8], conjunction, b_SX[:, 4:]],
        [recall, b_SX[:, :4], conjunction, a_SX, b_SX],
    ]
    padded = []
    for parts in kinds:
        words_SX = jnp.concatenate(parts, axis=1)
        padded.append(jnp.pad(words_SX, ((0, 0), (0, WIDTH - words_SX.shape[1]))))
    return jnp.stack(padded)[kind_S, jnp.arange(kind_S.size)]


def _gaps(
    once: Iterator, each: Iterator, room: int, may: Bool[Array, ""], recipe: Recipe
) -> Int[Array, " S"]:
    """How far each segment is moved ahead: a few jumps, together at most `room`."""
    may &= next(once) < recipe.gaps
    jumps, total = between(next(once), (1.0, 8.0)), room * next(once)
    jump_S, size_S = next(each), next(each)
    size_S = jnp.where(jump_S < jumps / jump_S.size, size_S, 0.0)
    share_S = jnp.cumsum(size_S) / jnp.maximum(size_S.sum(), 1e-6)
    return (jnp.where(may, total, 0.0) * share_S.clip(0.0, 1.0)).astype(jnp.int32)


def _last_below(end_S: Int[Array, " S"], limit: int) -> Int[Array, ""]:
    return jnp.where(end_S <= limit, end_S, 0).max()
