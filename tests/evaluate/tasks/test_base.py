"""Laws of every needle task, whatever the tokenizer: size, sparseness, truth, seed."""

from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxkv.evaluate.language import BOS
from jaxkv.evaluate.tasks import TASKS, score, task
from jaxkv.train.tokenizer import word_tokenizer


def _characters() -> Tokenizer:
    """One token a byte: the finest tokenizer there is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


TOKENIZERS = {"words": (word_tokenizer(), 9), "characters": (_characters(), 80)}


def _sample(name, length=1024, seed=0):
    return task(name)(word_tokenizer(), length, np.random.default_rng(seed))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("length", [1024, 4099])
def test_sample_fills_its_length(name, kind, length):
    tokenizer, sentence = TOKENIZERS[kind]
    sample = task(name)(tokenizer, length, np.random.default_rng(0))
    sizes = [
        len(tokenizer.encode(f"{sample.context} {question.text}").ids)
        for question in sample.questions
    ]
    assert length - sentence - 3 < max(sizes) <= length


@pytest.mark.parametrize("name", TASKS)
def test_answers_contain_their_references(name):
    tokenizer = word_tokenizer()
    for question in _sample(name).questions:
        assert score(question.answer, question.references) == 1
        assert score("", question.references) == 0
        ids = tokenizer.encode(question.answer, add_special_tokens=False).ids
        assert BOS not in ids
        assert score(tokenizer.decode(ids), question.references) == 1


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", range(5))
def test_facts_stand_once_and_answer_alone(name, seed):
    """Each reference follows its opening once, and no other statement has its key."""
    sample = _sample(name, seed=seed)
    statements = _statements(sample.context)
    values = [ref for question in sample.questions for ref in question.references]
    assert len(set(values)) == len(values)
    by_value = {" ".join(words[4:8]): words for words in statements}
    keys = Counter(tuple(words[1:3]) for words in statements)
    for question in sample.questions:
        for reference in question.references:
            words = by_value[reference]
            assert " ".join(words[:4]) in question.text
            of_the_key = len(question.references) if "both" in question.text else 1
            assert keys[tuple(words[1:3])] == of_the_key


@pytest.mark.parametrize("name", TASKS)
def test_filler_repeats_filler(name):
    statements = [" ".join(words) for words in _statements(_sample(name, 8192).context)]
    repeated = 1 - len(set(statements)) / len(statements)
    assert 0.2 < repeated < 0.4


@pytest.mark.parametrize("name", TASKS)
def test_seed_decides_everything(name):
    assert _sample(name, seed=3) == _sample(name, seed=3)
    assert _sample(name, seed=3) != _sample(name, seed=4)


@pytest.mark.parametrize("name", TASKS)
def test_too_short_is_an_error(name):
    with pytest.raises(ValueError, match="does not fit into 16 tokens"):
        _sample(name, 16)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="single_needle, multi_key"):
        task("needle")


def test_score_counts_references():
    references = ("a b c d", "e f g h")
    assert score(" a b\n c  d . the", references) == 0.5
    assert score("e f g h and a b c d .", references) == 1
    assert score("a b c . d e f g", references) == 0


def _statements(context):
    sentences = context.removesuffix(" .").split(" . ")
    return [sentence.split() for sentence in sentences]
