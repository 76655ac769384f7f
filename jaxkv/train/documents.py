"""Training documents, drawn on the device: sentences, repeats of them and questions.

A document is a row of segments in the language of `jaxkv.evaluate.language`:

    fact     a new key, or a second value for an earlier one       6 to 13 words
    link     a new key, whose value is a fact's                    7
    let      an assignment of a value or an earlier variable       6 to 13
    note     a line of the row's list                              6 to 10
    filler   the next stock sentence                               6 to 8
    again    an earlier fact, link or assignment, word for word
    one, both, two, follow, trace      questions and their answers
    tally    the question about the list, once, after its last line

Every row draws its own habits (`jaxkv.train.habits`): what its sentences mostly are,
how often it repeats itself, where a phase of questions begins, how few adjectives and
nouns its keys share, how often a key has two values. A question never has two answers.
Some rows instead ask nothing and repeat what they said (`jaxkv.train.repeats`).

All of it is a function of a key: no state, no file, no host. Segments are built as
arrays of equal width with gaps, and closed up by cumulative sums and a scatter.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxkv.evaluate.language import BOS, PAD
from jaxkv.train.draws import between
from jaxkv.train.habits import draw_kinds
from jaxkv.train.lists import draw_list
from jaxkv.train.questions import ANSWER, RECALLED, WIDTH, draw_targets, words
from jaxkv.train.recipe import FAMILIES, FOLLOW, LINK, ONE, TALLY, Recipe
from jaxkv.train.repeats import draw_copies
from jaxkv.train.sentences import ADJECTIVES, NOUNS, draw_sentences
from pallas_kernels.sharded import over_mesh

SHORTEST = 6
"""No segment has fewer words."""

ONCE, EACH = 28, 58
"""The uniform numbers that a document uses: for all of it, and for each segment."""

FAMILY = np.zeros(TALLY + 1, np.int32)
FAMILY[ONE:FOLLOW], FAMILY[FOLLOW : TALLY + 1] = 1, (2, 3, 4)
QUOTE = FAMILIES.index("quote") + 1


def documents(
    key: Key[Array, ""],
    rows: int,
    length: int,
    recipe: Recipe | None = None,
    multiple: int = 1,
) -> dict[str, Array]:
    """`rows` documents of `length` words; in jit, all but `key` are static.

    Rows that weigh nothing and ask nothing fill them up to a `multiple`; on a mesh each
    device makes its own rows. The documents are the same whatever the two are.

    Returns a dict of arrays [rows, length]:
      tokens: int32 ids. position: int32, increasing along a row, below
      `recipe.max_position`. weight: float32, of predicting the word at this place (0
      for `<bos>`). answer: int32, 0 or, for the words of an answer, a number that is
      its own in the row and is at most `segments(length)`. family: int32, 0 or, for the
      words of an answer, 1 + the place of its kind in `FAMILIES`.

    Raises:
      ValueError: `length` is below 64 words or above `recipe.max_position`.
    """
    recipe = recipe or Recipe()
    if not 64 <= length <= recipe.max_position:
        raise ValueError(
            f"A document has 64 to {recipe.max_position} words, not {length}."
        )
    # One draw for all rows and purposes: a generator costs seconds to compile.
    count = segments(length)
    sizes = np.cumsum([ONCE, EACH * count, ADJECTIVES + NOUNS])
    drawn_BX = jax.random.uniform(key, (rows, int(sizes[-1])))
    once_BX, each_BX, order_BX = jnp.split(drawn_BX, sizes[:-1], axis=1)
    real_B = jnp.arange(rows + -rows % multiple) < rows
    each_BXS = each_BX.reshape(rows, EACH, count)
    filled = [
        jnp.pad(x, [(0, -rows % multiple)] + [(0, 0)] * (x.ndim - 1))
        for x in (once_BX, each_BXS, order_BX)
    ]
    row = jax.vmap(partial(_row, length=length, recipe=recipe))
    drawn = {"drawn": (*filled, real_B)}
    return over_mesh(lambda mine: row(*mine["drawn"]), drawn, {"drawn": "B"}, "B")


def segments(length: int) -> int:
    """The most segments that a document of `length` words can have."""
    return length // SHORTEST + 1


def _row(
    once_X: Float[Array, " X"],
    each_XS: Float[Array, "Y S"],
    order_X: Float[Array, " Z"],
    real: Bool[Array, ""],
    length: int,
    recipe: Recipe,
) -> dict[str, Array]:
    """One document, from uniform numbers: of the row, of each segment, of each word."""
    once, each = iter(once_X), iter(each_XS)
    repeats = next(once) < recipe.repeats
    kind_S = draw_kinds(once, each, each_XS.shape[1], length, repeats, recipe)
    line_S8, tally = draw_list(once, each, order_X, kind_S)
    said = draw_sentences(once, each, order_X, kind_S, line_S8, recipe)
    kind_S, first_S, second_S = draw_targets(each, kind_S, said)
    words_SW = words(kind_S, first_S, second_S, said, tally)
    end_S, seg_T, slot_T = _close_up(words_SW, length)

    kind_T = kind_S[seg_T]
    tokens_T = words_SW[seg_T, slot_T].at[0].set(BOS)
    recalled_T = jnp.asarray(RECALLED)[kind_T, slot_T]
    answer_T = jnp.where(jnp.asarray(ANSWER)[kind_T, slot_T], seg_T + 1, 0)
    family_T = jnp.asarray(FAMILY)[kind_T]
    weight_T = jnp.where(kind_T == TALLY, recipe.tallied, 1.0)
    gap_S = _gaps(once, each, recipe.max_position - length, recipe)

    # "repeat from" names a fact or link, whose key must have no other value.
    quotable_S = (kind_S <= LINK) & (said.partner_S == jnp.arange(kind_S.size))
    copies = draw_copies(once, each, quotable_S, end_S, length)
    marked_T = jnp.where(
        copies.marker_T > 0, copies.marker_T, tokens_T[copies.source_T]
    )
    last = seg_T[copies.context]
    seg_T = jnp.where(repeats, jnp.minimum(seg_T, last), seg_T)
    tokens_T = jnp.where(repeats, marked_T, tokens_T)
    recalled_T = jnp.where(repeats, copies.known_T, recalled_T)
    answer_T = jnp.where(repeats, copies.quote_T, answer_T)
    family_T = jnp.where(repeats, QUOTE, family_T)

    place_T = jnp.arange(length)
    started_T = place_T > 0
    weight_T = jnp.where(recalled_T, weight_T, recipe.rest)
    weight_T = jnp.where(real, weight_T, 0.0)
    answer_T = jnp.where(started_T & real, answer_T, 0)
    return {
        "tokens": tokens_T,
        "position": jnp.where(started_T, place_T + gap_S[seg_T], 0),
        "weight": weight_T * started_T.astype(jnp.float32),
        "answer": answer_T,
        "family": jnp.where(answer_T > 0, family_T, 0),
    }


def _close_up(
    words_SW: Int[Array, "S W"], length: int
) -> tuple[Int[Array, " S"], Int[Array, " T"], Int[Array, " T"]]:
    """(where segments end, the segment at each place, which of its places that is).

    Words that are <pad> take no place. Place 0 is left for <bos>.
    """
    there_SW = words_SW != PAD
    within_SW = jnp.cumsum(there_SW.astype(jnp.int32), axis=1)
    end_S = jnp.cumsum(within_SW[:, -1])
    place_SW = (end_S - within_SW[:, -1])[:, None] + within_SW
    place_SW = jnp.where(there_SW, place_SW, length)
    index_SW = jnp.arange(words_SW.size).reshape(words_SW.shape)
    source_T = jnp.zeros(length, jnp.int32).at[place_SW].set(index_SW, mode="drop")
    return end_S, source_T // WIDTH, source_T % WIDTH


def _gaps(
    once: Iterator, each: Iterator, room: int, recipe: Recipe
) -> Int[Array, " S"]:
    """How far each segment is moved ahead: a few jumps, together at most `room`."""
    may: Bool[Array, ""] = next(once) < recipe.gaps
    jumps, total = between(next(once), (1.0, 8.0)), room * next(once)
    jump_S, size_S = next(each), next(each)
    size_S = jnp.where(jump_S < jumps / jump_S.size, size_S, 0.0)
    share_S = jnp.cumsum(size_S) / jnp.maximum(size_S.sum(), 1e-6)
    return (jnp.where(may, total, 0.0) * share_S.clip(0.0, 1.0)).astype(jnp.int32)
