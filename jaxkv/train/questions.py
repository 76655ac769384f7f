"""What the segments of a training document speak of, and their words.

Every segment has `WIDTH` places; the words that it does not have are <pad>.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkv.evaluate.language import PAD
from jaxkv.train.draws import pick, pick_ready, pick_two
from jaxkv.train.recipe import (
    AGAIN,
    BOTH,
    FACT,
    FOLLOW,
    LET,
    LINK,
    ONE,
    TALLY,
    TRACE,
    TWO,
)
from jaxkv.train.sentences import HOPS, Sentences, word

WIDTH = 42

SPANS = {
    AGAIN: (4, 13),
    ONE: (5, 14),
    BOTH: (6, 24),
    TWO: (10, 32),
    FOLLOW: (5, 27),
    TRACE: (5, 42),
    TALLY: (2, 7),
}
"""Where, in a segment of a kind, the words are that looking back predicts."""


def _mask() -> np.ndarray:
    mask_XW = np.zeros((TALLY + 1, WIDTH), bool)
    for kind, (start, stop) in SPANS.items():
        mask_XW[kind, start:stop] = True
    return mask_XW


RECALLED = _mask()
ANSWER = _mask() & (np.arange(TALLY + 1) != AGAIN)[:, None]
"""`ANSWER[kind, i]`: is place i of such a segment part of an answer?"""


def draw_targets(
    each: Iterator, kind_S: Int[Array, " S"], said: Sentences
) -> tuple[Int[Array, " S"], Int[Array, " S"], Int[Array, " S"]]:
    """The sentences that each segment speaks of: (kind, first, second).

    A question has one answer, and all of it stands before the question. Where nothing
    can be asked in the drawn way, it becomes a "one".
    """
    place_S = jnp.arange(kind_S.size)
    fact_S, link_S = kind_S == FACT, kind_S == LINK
    single_S = fact_S & (said.partner_S == place_S)

    one_S, _ = pick(next(each), single_S | link_S, place_S)
    again_S, _ = pick(next(each), kind_S <= LET, place_S)
    two_S, other_S = pick_two(next(each), next(each), single_S, place_S)
    late_S, pairs_S = pick(next(each), fact_S & (said.partner_S < place_S), place_S)
    let_S, lets_S = pick(next(each), kind_S == LET, place_S)
    # A link can be followed once both it and its fact have been said.
    known_S = jnp.maximum(place_S, said.target_S)
    known_S = jnp.where(link_S, known_S, kind_S.size)
    link_S, links_S = pick_ready(next(each), known_S, place_S)

    lacks_S = (
        ((kind_S == BOTH) & (pairs_S == 0))
        | ((kind_S == FOLLOW) & (links_S == 0))
        | ((kind_S == TRACE) & (lets_S == 0))
    )
    kind_S = jnp.where(lacks_S, ONE, kind_S)
    first_S, second_S = place_S, place_S
    for kind, first, second in (
        (AGAIN, again_S, again_S),
        (ONE, one_S, one_S),
        (BOTH, said.partner_S[late_S], late_S),
        (TWO, two_S, other_S),
        (FOLLOW, link_S, said.target_S[link_S]),
        (TRACE, let_S, let_S),
    ):
        first_S = jnp.where(kind_S == kind, first, first_S)
        second_S = jnp.where(kind_S == kind, second, second_S)
    return kind_S, first_S, second_S


def words(
    kind_S: Int[Array, " S"],
    first_S: Int[Array, " S"],
    second_S: Int[Array, " S"],
    said: Sentences,
    tally: Int[Array, " 7"],
) -> Int[Array, "S 42"]:
    """The words of each segment, those that it lacks being <pad>."""
    a_S4, a_S8 = said.opening_S4[first_S], said.body_S8[first_S]
    b_S4, b_S8 = said.opening_S4[second_S], said.body_S8[second_S]

    def same(text: str) -> Array:
        return jnp.full((kind_S.size, 1), word(text))

    stop = same(".")
    layouts = {
        ONE: [same("recall"), a_S4, a_S8, stop],
        BOTH: [same("recall"), same("both"), a_S4, a_S8, same("and"), b_S8, stop],
        TWO: [same("recall"), b_S4, same("and"), a_S4, a_S8, stop, b_S4, b_S8, stop],
        FOLLOW: [same("follow"), a_S4, a_S8, stop, b_S4, b_S8, stop],
        TRACE: [same("trace"), a_S4, *_walk(first_S, said, stop), stop],
        TALLY: [jnp.broadcast_to(tally[None], (kind_S.size, tally.size))],
    }
    words_SW = _wide([a_S4, a_S8, stop])
    for kind, parts in layouts.items():
        words_SW = jnp.where((kind_S == kind)[:, None], _wide(parts), words_SW)
    return words_SW


def _walk(
    at_S: Int[Array, " S"], said: Sentences, stop_S1: Int[Array, "S 1"]
) -> list[Array]:
    """What an assignment's value is, and so on to nouns: "A2 N2 . let A2 N2 be ..."."""
    steps = []
    for _ in range(HOPS):
        next_S = said.parent_S[at_S]
        key_S2, opening_S4 = said.body_S8[at_S, :2], said.opening_S4[next_S]
        step_S7 = jnp.concatenate([key_S2, stop_S1, opening_S4], axis=1)
        steps.append(jnp.where((next_S != at_S)[:, None], step_S7, PAD))
        at_S = next_S
    return [*steps, said.body_S8[at_S]]


def _wide(parts: list[Array]) -> Array:
    words_SX = jnp.concatenate(parts, axis=1)
    return jnp.pad(words_SX, ((0, 0), (0, WIDTH - words_SX.shape[1])))
