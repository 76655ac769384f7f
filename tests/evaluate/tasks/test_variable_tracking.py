"""Variable tracking: four hops, and every variable is assigned before it is used."""

import numpy as np

from jaxkv.evaluate.language import ADJECTIVES
from jaxkv.evaluate.tasks import VariableTracking
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import sentences


def _sample(seed, **fields):
    task = VariableTracking(dense=True, **fields)
    return task(word_tokenizer(), 1024, np.random.default_rng(seed))


def test_chains_have_four_hops_and_a_value():
    for question in _sample(0).questions:
        *variables, value = question.references
        assert len(variables) == 4
        assert question.answer.count(" . let ") == 4
        assert question.answer.endswith(f"let {variables[-1]} be {value} .")
    assert len(_sample(0, hops=2).questions[0].references) == 3


def test_variables_are_assigned_once_and_before_use():
    known = set()
    for words in sentences(_sample(1).context):
        if words[0] == "let":
            assert tuple(words[1:3]) not in known
            if words[4] in ADJECTIVES:
                assert tuple(words[4:6]) in known
            known.add(tuple(words[1:3]))
    assert len(known) > 100
