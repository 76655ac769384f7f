"""Multi-key: a fact's distractors share one word each with it."""

from itertools import islice

import numpy as np

from jaxkv.evaluate.tasks import MultiKey
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import sentences


def test_distractors_share_a_word():
    for group in islice(MultiKey().groups(np.random.default_rng(0)), 20):
        _, _, *asked = group.text.split()
        shared = [
            [a == b for a, b in zip(asked, piece.split()[1:4], strict=True)]
            for piece in group.pieces
        ]
        assert len(shared) == 4 and shared.count([True] * 3) == 1
        for word in range(3):
            others = [s for s in shared if not all(s)]
            assert any(s[word] for s in others)


def test_keys_differ():
    task = MultiKey(dense=True)
    sample = task(word_tokenizer(), 2048, np.random.default_rng(0))
    facts = [words for words in sentences(sample.context) if words[0] == "the"]
    assert len({tuple(words[1:3]) for words in facts}) == len(facts)
