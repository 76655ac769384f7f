"""What each segment of a training document is, by the habits that its row draws."""

from collections.abc import Iterator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxkv.train.draws import between, one_of
from jaxkv.train.recipe import AGAIN, FACT, FILLER, LET, NOTE, ONE, TALLY, Recipe

SEGMENT = 10
"""About how many words a segment has: where a share of a row's words is in segments."""

FEWEST_LINES = 4
"""A list of fewer lines is not asked about."""

LINES = 4
"""A row that is mostly a list has so many lines for each other sentence."""


def draw_kinds(
    once: Iterator,
    each: Iterator,
    count: int,
    length: int,
    plain: Bool[Array, ""],
    recipe: Recipe,
) -> Int[Array, " S"]:
    """The kinds of `count` segments, of which about `length` words are used.

    The first two are facts, so that there is always something to ask about. A plain row
    asks nothing and says nothing twice.
    """
    place_S = jnp.arange(count, dtype=jnp.int32)
    row = length / SEGMENT
    weights, stock = _weights(once, recipe)
    end = (between(next(once), recipe.listed) * row).astype(jnp.int32)
    kind_S = one_of(next(each), weights)
    # Whole runs are filler or not, so that sentences stand side by side in sparse rows.
    run = 1 + (next(once) * recipe.runs).astype(jnp.int32)
    kind_S = jnp.where(next(each)[place_S // run] < stock, FILLER, kind_S)
    kind_S = jnp.where((kind_S == NOTE) & (place_S >= end), FACT, kind_S)

    again_S = next(each) < between(next(once), recipe.again)
    kind_S = jnp.where(again_S & (kind_S <= LET) & ~plain, AGAIN, kind_S)

    fact, link, let = weights[:3]
    asked = jnp.stack([*(fact * share for share in recipe.kinds), link, let])
    start = between(next(once), recipe.phase) * row
    start = jnp.where(next(once) < recipe.phases, start, 2.0 * count)
    before, within = recipe.asked
    asks_S = next(each) < jnp.where(
        place_S.astype(jnp.float32) >= start, within, before
    )
    question_S = ONE + one_of(next(each), asked)
    kind_S = jnp.where(asks_S & ~plain, question_S, kind_S)

    listed = (kind_S == NOTE).sum() >= FEWEST_LINES
    kind_S = jnp.where((place_S == end) & listed & ~plain, TALLY, kind_S)
    return kind_S.at[:2].set(FACT)


def _weights(once: Iterator, recipe: Recipe) -> tuple[Array, Array]:
    """How likely each kind of sentence is in this row, and the share of filler."""
    purity = between(next(once), recipe.purity)
    drawn = jnp.stack([next(once) for _ in recipe.plain]) ** purity
    weights = jnp.asarray(recipe.plain, jnp.float32) * drawn + 1e-6
    lines = LINES * weights[:NOTE].sum()
    lists = next(once) < recipe.lists
    weights = weights.at[NOTE].set(jnp.where(lists, lines, weights[NOTE]))
    share = between(next(once), recipe.stock)
    some = weights[FILLER] / weights.sum()
    sparse = next(once) < recipe.sparse
    return weights[:FILLER], jnp.where(sparse, share, some)
