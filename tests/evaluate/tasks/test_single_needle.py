"""Single needle: one reference a question, about different facts."""

import numpy as np

from jaxkv.evaluate.tasks import SingleNeedle
from jaxkv.train.tokenizer import word_tokenizer


def test_each_question_is_about_a_fact_of_its_own():
    sample = SingleNeedle(asked=4)(word_tokenizer(), 512, np.random.default_rng(0))
    assert len(sample.questions) == len({q.text for q in sample.questions}) == 4
    for question in sample.questions:
        fact = f"{question.text.removeprefix('recall ')} {question.answer}"
        assert sample.context.count(fact) == 1


def test_depths_are_spread():
    task = SingleNeedle(asked=1)
    depths = []
    for seed in range(40):
        sample = task(word_tokenizer(), 512, np.random.default_rng(seed))
        at = sample.context.index(sample.questions[0].answer)
        depths.append(at / len(sample.context))
    assert min(depths) < 0.2 and max(depths) > 0.8
