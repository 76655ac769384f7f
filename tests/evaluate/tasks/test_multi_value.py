"""Multi-value: both values of a key, in the order in which the context gives them."""

import numpy as np
import pytest

from jaxkv.evaluate.tasks import MultiValue
from jaxkv.train.tokenizer import word_tokenizer


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dense", [False, True])
def test_values_come_in_order_of_appearance(seed, dense):
    task = MultiValue(dense=dense)
    sample = task(word_tokenizer(), 512, np.random.default_rng(seed))
    for question in sample.questions:
        opening = question.text.removeprefix("recall both ")
        first, second = question.references
        assert sample.context.count(f"{opening} ") == 2
        assert sample.context.index(f"{opening} {first} .") < sample.context.index(
            f"{opening} {second} ."
        )
        assert question.answer == f"{first} and {second} ."
        assert f" {first} " not in f" {second} "
