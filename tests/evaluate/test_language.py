"""The language is closed; its words, sentences and questions are what they claim."""

import numpy as np
import pytest

from jaxkv.evaluate import language
from jaxkv.train.tokenizer import word_tokenizer


def test_vocabulary_is_512_different_words():
    words = language.VOCABULARY
    assert len(words) == len(set(words)) == 512
    assert words[language.PAD : language.UNK + 1] == language.SPECIALS
    assert all(word == word.lower() and " " not in word for word in words)


def test_every_noun_has_eight_successors():
    count = len(language.NOUNS)
    table = language.SUCCESSORS
    assert table.shape == (count, 8)
    assert all(len(set(row)) == 8 for row in table.tolist())
    assert table.min() >= 0 and table.max() < count


def test_half_of_a_value_follows_the_chain():
    rng = np.random.default_rng(0)
    likely = total = 0
    for _ in range(500):
        fact = language.draw_statement(rng)
        nouns = [language.NOUNS.index(noun) for noun in (fact.noun, *fact.values)]
        for last, noun in zip(nouns, nouns[1:], strict=False):
            likely += noun in language.SUCCESSORS[last]
            total += 1
    expected = language.CHAIN + (1 - language.CHAIN) * 8 / len(language.NOUNS)
    assert abs(likely / total - expected) < 0.05


def test_values_have_one_to_eight_nouns():
    rng = np.random.default_rng(0)
    counts = {len(language.draw_statement(rng).values) for _ in range(200)}
    assert counts == set(range(1, language.LONGEST + 1))


def test_stock_is_in_the_language_and_like_no_fact():
    for sentence in language.STOCK:
        words = sentence.split()
        assert set(words) <= set(language.VOCABULARY) and words[-1] == "."
        assert words[0] not in ("the", "let", "note") and 6 <= len(words) <= 8


def test_questions_continue_into_their_answers():
    rng = np.random.default_rng(1)
    one = language.draw_statement(rng)
    two = language.draw_statement(rng, one.adjective, one.noun, one.verb)
    other = language.draw_statement(rng)
    assert " ".join(language.recall(one)) == f"recall {one.text}"
    assert " ".join(language.recall_both(one, two)) == (
        f"recall both {one.opening} {one.value} and {two.value} ."
    )
    assert " ".join(language.recall_two(one, other)) == (
        f"recall {other.opening} and {one.text} {other.text}"
    )
    with pytest.raises(ValueError, match="begin alike"):
        language.recall_both(one, other)
    pointer = language.link(other, one)
    assert pointer.text == f"{other.opening} {one.adjective} {one.noun} ."
    assert " ".join(language.follow(pointer, one)) == (
        f"follow {pointer.text} {one.text}"
    )


def test_trace_says_every_assignment():
    last = language.Assignment("bold", "axe", ("jar", "egg"))
    first = language.Assignment("calm", "fox", last.key)
    assert " ".join(language.trace((first, last))) == (
        "trace let calm fox be bold axe . let bold axe be jar egg ."
    )


def test_quotation_is_the_sixteen_words_after_four():
    passage = " ".join(language.NOUNS[:24])
    question, answer = language.repeat_from(passage)
    assert question == f"repeat from {' '.join(language.NOUNS[:4])}"
    assert answer == " ".join(language.NOUNS[4:20])


def test_tokenizer_is_a_word_an_id_both_ways():
    tokenizer = word_tokenizer()
    text = language.draw_statement(np.random.default_rng(2)).text
    ids = tokenizer.encode(text).ids
    assert ids[0] == language.BOS and len(ids) == 1 + len(text.split())
    assert [language.VOCABULARY[i] for i in ids[1:]] == text.split()
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_special_tokens=False).ids == ids[1:]
    assert tokenizer.encode("zebra").ids == [language.BOS, language.UNK]
    assert tokenizer.get_vocab_size() == 512
