"""Documents read as the language says, and every answer is in the text before it."""

from collections import Counter
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from jaxkv.evaluate import language
from jaxkv.train.documents import documents, segments
from jaxkv.train.recipe import FAMILIES, Recipe
from tests.evaluate.tasks.solver import is_stock, sentences, solve

ROWS, LENGTH = 64, 512
RECIPE = Recipe(repeats=0.3, gaps=1.0)
COMMANDS = {
    **dict.fromkeys(("recall",), "needle"),
    **dict.fromkeys(("follow", "trace"), None),
    **dict.fromkeys(("common", "frequent"), "tally"),
}


@cache
def _draw(length=LENGTH, recipe=RECIPE, seed=0):
    draw = jax.jit(documents, static_argnums=(1, 2, 3))
    return jax.device_get(draw(jax.random.key(seed), ROWS, length, recipe))


def _rows(drawn, repeats):
    """(words, answers, families) of the rows that repeat, or of the others."""
    arrays = (drawn[name] for name in ("tokens", "answer", "family"))
    for ids, answer, family in zip(*arrays, strict=True):
        words = [language.VOCABULARY[i] for i in ids]
        assert words[0] == "<bos>" and "<pad>" not in words
        if ("repeat" in words) == repeats:
            yield words[1:], answer[1:], family[1:]


def _questions(words, answer, family):
    """(the sentences before, question, answer, family, whether all of it is there)."""
    said, at = [], 0
    while at < len(words):
        if words[at] in COMMANDS:
            start = at
            while at < len(words) and not answer[at]:
                at += 1
            question, begin = words[start:at], at
            while at < len(words) and answer[at] == answer[begin]:
                at += 1
            if begin < at:
                name = FAMILIES[family[begin] - 1]
                text = " ".join(said)
                yield text, " ".join(question), words[begin:at], name, at < len(words)
        else:
            assert not answer[at]
            said.append(words[at])
            at += 1


def _asked():
    for row in _rows(_draw(), repeats=False):
        yield from _questions(*row)


def test_every_answer_is_true_and_the_only_one():
    asked = Counter()
    for context, question, answer, family, whole in _asked():
        command = question.split()[0]
        if family != "tally":
            expected = solve(context, question)
            if whole:
                assert " ".join(answer) == expected
            assert expected.startswith(" ".join(answer))
        assert (COMMANDS[command] or command) == family
        asked[" ".join(question.split()[:2]) if "both" in question else command] += 1
    assert min(asked[c] for c in ("recall", "recall both", "follow", "trace")) > 8


def test_tallies_are_of_the_list_so_far():
    kinds = Counter()
    for context, question, answer, family, whole in _asked():
        if family == "tally" and whole:
            lines = [s[1:] for s in sentences(context) if s[0] == "note"]
            counts = Counter(noun for line in lines for noun in line)
            said = [counts[noun] for noun in answer[:-1]]
            assert len(said) == {"common :": 4, "frequent :": 3}[question]
            assert said == [count for _, count in counts.most_common(len(said))]
            low, high = language.LINE
            assert all(low <= len(line) <= high for line in lines)
            kinds[question] += 1
    assert len(kinds) == 2, kinds


def test_keys_differ_unless_they_have_two_values():
    openings = 0
    for words, answer, family in _rows(_draw(), repeats=False):
        asked = list(_questions(words, answer, family))
        context = asked[-1][0] if asked else " ".join(words)
        values: dict[tuple, set] = {}
        for sentence in sentences(context):
            if sentence[0] in ("the", "let"):
                value = (sentence[0], *sentence[3:])
                values.setdefault(tuple(sentence[1:3]), set()).add(value)
        for found in values.values():
            assert len(found) <= 2
            assert len({value[:2] for value in found}) == 1
        openings += len(values)
    assert openings > 200


def test_chains_are_walked_to_their_value():
    hops = Counter(
        " ".join(answer).count(" . let ")
        for _, _, answer, family, whole in _asked()
        if family == "trace" and whole
    )
    assert {0, 1, 2} <= hops.keys() and max(hops) <= 4


def test_values_have_every_length():
    lengths = Counter(
        len(answer) - 1
        for _, question, answer, _, whole in _asked()
        if question.startswith("recall the") and " and " not in question and whole
    )
    assert lengths.keys() == set(range(1, 9))


def test_filler_is_the_stock_in_turn_and_fills_some_rows():
    shares = []
    for words, _, _ in _rows(_draw(), repeats=True):
        context = " ".join(words[: words.index("repeat")])
        said = sentences(context)
        stock = [f"{' '.join(s)} ." for s in said if is_stock(s)]
        if stock:
            first = language.STOCK.index(stock[0])
            count = len(language.STOCK)
            turn = [language.STOCK[(first + i) % count] for i in range(len(stock))]
            assert stock == turn
        shares.append(len(stock) / len(said))
    assert min(shares) < 0.1 and max(shares) > 0.7


def test_repeats_are_of_the_words_before():
    manners, quotes = Counter(), 0
    for words, answer, family in _rows(_draw(), repeats=True):
        end = words.index("repeat")
        context, rest = words[:end], words[end:]
        assert context[-1] == "."
        copies = " ".join(rest).split("repeat ")[1:]
        for copy in copies[:-1]:
            marker, *said = copy.split()
            lead = 4 if marker == "from" else 8
            assert len(said) <= len(context)
            found = f" {' '.join(said)} "
            assert found in f" {' '.join(context)} "
            whole = said == context
            manners["whole" if whole else marker] += 1
            if marker == "from":
                opening = " ".join(said[:lead])
                assert " ".join(context).count(f"{opening} ") == 1
        numbers = set(answer[answer > 0].tolist())
        assert len(numbers) in (len(copies), len(copies) - 1)
        assert set(family[answer > 0].tolist()) == {1 + FAMILIES.index("quote")}
        assert all((answer == n).sum() <= language.QUOTED for n in numbers)
        quotes += len(numbers)
    assert min(manners[m] for m in ("whole", ":", "from")) >= 2 and quotes > 30


def test_weights_are_of_the_word_at_the_place():
    drawn = _draw()
    tally = drawn["family"] == 1 + FAMILIES.index("tally")
    assert (drawn["weight"][:, 0] == 0).all()
    assert (drawn["weight"][(drawn["answer"] > 0) & ~tally] == 1).all()
    assert (drawn["weight"][tally] == RECIPE.tallied).all()
    weights = np.float32([0, RECIPE.rest, 1, RECIPE.tallied])
    assert set(np.unique(drawn["weight"])) == set(weights)
    assert drawn["answer"].max() <= segments(LENGTH)
    assert ((drawn["family"] > 0) == (drawn["answer"] > 0)).all()


def test_positions_rise_and_stay_in_range():
    position = _draw()["position"]
    assert (position[:, 0] == 0).all()
    assert (np.diff(position, axis=1) >= 1).all()
    assert RECIPE.max_position // 2 < position.max() < RECIPE.max_position
    jumps = (np.diff(position, axis=1) > 1).sum(axis=1)
    assert 0 < jumps.mean() < 10


def test_shortest_rows_have_no_room_to_jump():
    drawn = _draw(64, replace(RECIPE, max_position=64))
    assert (drawn["position"] == np.arange(64)).all()
    assert (drawn["tokens"] != language.PAD).all()
    assert (drawn["tokens"][:, 0] == language.BOS).all()


def test_key_decides_everything():
    again = jax.jit(documents, static_argnums=(1, 2, 3))
    again = jax.device_get(again(jax.random.key(0), ROWS, LENGTH, RECIPE))
    for name, array in _draw().items():
        np.testing.assert_array_equal(array, again[name])
    assert (_draw(seed=1)["tokens"] != _draw()["tokens"]).any()


def test_length_is_checked():
    with pytest.raises(ValueError, match="64 to 8192 words, not 16"):
        documents(jax.random.key(0), 1, 16, RECIPE)
