"""Two hops: the question names the link only, and the fact stands on either side."""

import numpy as np

from jaxkv.evaluate.tasks import TwoHop
from jaxkv.train.tokenizer import word_tokenizer


def test_question_does_not_name_the_fact():
    orders = set()
    for seed in range(8):
        sample = TwoHop()(word_tokenizer(), 512, np.random.default_rng(seed))
        for question in sample.questions:
            pointer, fact = question.answer.removesuffix(" .").split(" . ")
            opening = question.text.removeprefix("follow ")
            assert sample.context.count(f"{opening} {pointer} .") == 1
            assert fact.startswith(f"the {pointer} ") and pointer not in question.text
            assert fact.endswith(f" {question.references[0]}")
            context = sample.context
            orders.add(context.index(f"{fact} .") < context.index(f"{opening} "))
    assert orders == {True, False}
