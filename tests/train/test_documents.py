"""Documents read as the language says, and every answer is in the text before it."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from jaxkv.evaluate import language
from jaxkv.train.documents import documents, segments
from jaxkv.train.recipe import Recipe

ROWS, LENGTH = 24, 512
RECIPE = Recipe()


@cache
def _draw(length=LENGTH, recipe=RECIPE, seed=0):
    draw = jax.jit(documents, static_argnums=(1, 2, 3))
    return jax.device_get(draw(jax.random.key(seed), ROWS, length, recipe))


def _rows(drawn):
    """The words of each row, and whether each is of an answer."""
    for ids, answer in zip(drawn["tokens"], drawn["answer"], strict=True):
        words = [language.VOCABULARY[i] for i in ids]
        assert words[0] == "<bos>"
        yield words[1:], answer[1:]


def _segments(words):
    """(place, words) of each whole segment, by where each kind ends."""
    at = 0
    while at < len(words):
        head = words[at : at + 6]
        size = 9
        if head[0] == "recall":
            size = 24 if head[5:] == ["and"] else 16 if "both" in head else 10
        segment = words[at : at + size]
        if len(segment) == size:
            yield at, segment
        at += size


def _without_repeats(drawn):
    return [row for row in _rows(drawn) if "repeat" not in row[0]]


@pytest.mark.parametrize("length", [64, LENGTH])
def test_every_answer_is_true_and_the_only_one(length):
    asked = {"one": 0, "both": 0, "two": 0}
    for words, answer in _without_repeats(_draw(length)):
        values = {}
        for at, segment in _segments(words):
            said = " ".join(segment)
            flagged = [w for w, a in zip(segment, answer[at:], strict=False) if a]
            if segment[0] == "the":
                assert segment[-1] == "." and not flagged
                known = values.setdefault(tuple(segment[:4]), [])
                value = " ".join(segment[4:8])
                if value not in known:
                    known.append(value)
            elif segment[1] == "both":
                first, second = values[tuple(segment[2:6])]
                assert " ".join(flagged) == f"{first} and {second} ."
                asked["both"] += 1
            elif len(segment) == 10:
                (value,) = values[tuple(segment[1:5])]
                assert " ".join(flagged) == f"{value} ."
                asked["one"] += 1
            else:
                later, first = tuple(segment[1:5]), tuple(segment[6:10])
                (x,), (y,) = values[first], values[later]
                assert later != first
                assert said.endswith(f"{x} . {' '.join(later)} {y} .")
                assert " ".join(flagged) == f"{x} . {' '.join(later)} {y} ."
                asked["two"] += 1
    assert asked["one"] > 10
    if length == LENGTH:
        assert min(asked.values()) > 10, asked


def test_keys_differ_unless_they_have_two_values():
    for words, _ in _without_repeats(_draw()):
        openings = {}
        for _, segment in _segments(words):
            if segment[0] == "the":
                statements = openings.setdefault(tuple(segment[1:3]), set())
                statements.add((segment[3], *segment[4:8]))
        for statements in openings.values():
            assert len(statements) <= 2
            assert len({verb for verb, *_ in statements}) == 1


def test_repeat_rows_say_their_first_half_again():
    drawn = _draw(recipe=replace(RECIPE, repeats=1.0))
    for words, answer in _rows(drawn):
        half = words.index("repeat")
        assert words[half + 1] == ":"
        assert LENGTH // 2 - 12 < half <= LENGTH // 2
        assert words[half - 1] == "."
        assert words[half + 2 : 2 * half + 2] == words[:half]
        assert not answer.any()
    half = list(_rows(drawn))[0][0].index("repeat")
    weight = drawn["weight"][0]
    assert (weight[half + 3 : 2 * half + 3] == 1).all()


def test_weights_are_of_the_word_at_the_place():
    drawn = _draw()
    assert (drawn["weight"][:, 0] == 0).all()
    assert (drawn["weight"][drawn["answer"] > 0] == 1).all()
    assert set(np.unique(drawn["weight"])) == {
        np.float32(0),
        np.float32(RECIPE.rest),
        np.float32(1),
    }
    assert drawn["answer"].max() <= segments(LENGTH)


def test_plain_text_is_at_least_two_fifths():
    plain = np.mean(
        [
            sum(len(s) for _, s in _segments(words) if s[0] == "the") / len(words)
            for words, _ in _without_repeats(_draw(2048))
        ]
    )
    assert 0.4 < plain < 0.9


@pytest.mark.parametrize("length", [LENGTH, 8192])
def test_positions_rise_and_stay_in_range(length):
    position = _draw(length, replace(RECIPE, gaps=1.0, repeats=0.0))["position"]
    assert (position[:, 0] == 0).all()
    assert (np.diff(position, axis=1) >= 1).all()
    assert position.max() < RECIPE.max_position
    if length == LENGTH:
        assert position.max() > RECIPE.max_position // 2
        jumps = (np.diff(position, axis=1) > 1).sum(axis=1)
        assert 0 < jumps.mean() < 10


def test_key_decides_everything():
    again = jax.jit(documents, static_argnums=(1, 2, 3))
    again = jax.device_get(again(jax.random.key(0), ROWS, LENGTH, RECIPE))
    for name, array in _draw().items():
        np.testing.assert_array_equal(array, again[name])
    assert (_draw(seed=1)["tokens"] != _draw()["tokens"]).any()


def test_length_is_checked():
    with pytest.raises(ValueError, match="32 to 8192 words, not 16"):
        documents(jax.random.key(0), 1, 16, RECIPE)
