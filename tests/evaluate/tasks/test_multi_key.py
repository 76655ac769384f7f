"""Multi-key: distractors share one word with the fact, and keep to a tenth."""

import numpy as np
import pytest

from jaxkv.evaluate.tasks import MultiKey
from jaxkv.train.tokenizer import word_tokenizer


@pytest.mark.parametrize("length", [256, 1024, 2048])
def test_distractors_share_a_word(length):
    task = MultiKey()
    planted, questions = task.plant(np.random.default_rng(0), length // 90)
    each = len(planted) // len(questions)
    assert each >= 2 and len(planted) <= max(4, length // 90)
    for question in questions:
        _, _, adjective, noun, verb = question.text.split()
        shares = [
            (s.adjective == adjective) + (s.noun == noun) + (s.verb == verb)
            for s in planted
        ]
        assert shares.count(3) == 1
        assert sum(share > 0 for share in shares) >= each


def test_questions_are_answered_by_the_context():
    sample = MultiKey()(word_tokenizer(), 1024, np.random.default_rng(1))
    for question in sample.questions:
        fact = f"{question.text.removeprefix('recall ')} {question.answer}"
        assert sample.context.count(fact) == 1
