"""Single needle: facts of different keys, and nothing else of their kind."""

import numpy as np

from jaxkv.evaluate.tasks import SingleNeedle
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import is_stock, sentences


def test_keys_differ():
    task = SingleNeedle(dense=True)
    sample = task(word_tokenizer(), 2048, np.random.default_rng(0))
    facts = [s for s in sentences(sample.context) if not is_stock(s)]
    assert len(facts) > 150
    assert len({tuple(words[1:3]) for words in facts}) == len(facts)
