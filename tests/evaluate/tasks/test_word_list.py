"""Word lists: the nouns that are asked for lead by far, in every length."""

from collections import Counter

import numpy as np
import pytest

from jaxkv.evaluate.language import LINE, STOCK
from jaxkv.evaluate.tasks import CommonWords, FrequentWords
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import sentences


def _lines(task, length, seed=0):
    sample = task(word_tokenizer(), length, np.random.default_rng(seed))
    lines = [s[1:] for s in sentences(sample.context) if s[0] == "note"]
    (question,) = sample.questions
    return lines, question


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("length", [256, 2048])
def test_common_words_lead_by_three_to_one(dense, length):
    lines, question = _lines(CommonWords(dense=dense), length)
    counts = Counter(noun for line in lines for noun in line)
    common = {counts.pop(noun) for noun in question.references}
    assert len(common) == 1 and common.pop() >= 3 * max(counts.values())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("length", [256, 2048])
def test_frequent_words_come_in_order(dense, length):
    lines, question = _lines(FrequentWords(dense=dense), length)
    counts = Counter(noun for line in lines for noun in line)
    ranked = counts.most_common()
    assert tuple(noun for noun, _ in ranked[:3]) == question.references
    for (_, more), (_, less) in zip(ranked[:3], ranked[1:4], strict=True):
        assert more >= 2 * less


def test_lines_are_like_those_of_training():
    for task in (CommonWords(dense=True), FrequentWords(dense=True)):
        for seed in range(3):
            lines, question = _lines(task, 1024, seed)
            low, high = LINE
            assert all(low <= len(line) <= high for line in lines)
            stock = {word for sentence in STOCK for word in sentence.split()}
            assert not stock & {noun for line in lines for noun in line}
            assert len(question.references) == task.wanted
