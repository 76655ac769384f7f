"""Verbatim: sixteen words as they stand, across the ends of sentences."""

import numpy as np
import pytest

from jaxkv.evaluate.tasks import Verbatim
from jaxkv.train.tokenizer import word_tokenizer


@pytest.mark.parametrize("dense", [False, True])
def test_answer_follows_its_opening(dense):
    task = Verbatim(dense=dense)
    sample = task(word_tokenizer(), 1024, np.random.default_rng(0))
    for question in sample.questions:
        opening = question.text.removeprefix("repeat from ")
        assert len(question.answer.split()) == 16
        assert sample.context.count(f"{opening} {question.answer}") == 1
        assert " . the " in question.answer
