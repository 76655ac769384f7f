"""Multi-query: the fact that the question names last is answered first."""

import numpy as np

from jaxkv.evaluate.tasks import MultiQuery
from jaxkv.train.tokenizer import word_tokenizer


def test_both_facts_are_in_the_context():
    orders = set()
    for seed in range(8):
        sample = MultiQuery()(word_tokenizer(), 512, np.random.default_rng(seed))
        for question in sample.questions:
            later, first = question.text.removeprefix("recall ").split(" and ")
            start, rest = question.answer.removesuffix(" .").split(" . ")
            assert sample.context.count(f"{first} {start} .") == 1
            assert rest.startswith(later) and sample.context.count(f"{rest} .") == 1
            assert question.references == (start, rest.removeprefix(f"{later} "))
            orders.add(sample.context.index(first) < sample.context.index(later))
    assert orders == {True, False}
