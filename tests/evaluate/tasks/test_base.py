"""Laws of every task, whatever the tokenizer: size, share of facts, truth, depth."""

from functools import cache

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxkv.evaluate.language import BOS, STOCK
from jaxkv.evaluate.tasks import IN_MEAN, TASKS, SingleNeedle, score, task
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import is_stock, sentences, solve


def _characters() -> Tokenizer:
    """One token a byte: the finest tokenizer there is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


TOKENIZERS = {"words": (word_tokenizer(), 8), "characters": (_characters(), 35)}


@cache
def _sample(name, length=1024, seed=0):
    return task(name)(word_tokenizer(), length, np.random.default_rng(seed))


def _share_of_facts(context):
    planted = [len(s) + 1 for s in sentences(context) if not is_stock(s)]
    return sum(planted) / len(context.split())


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
    assert length - sentence < max(sizes) <= length


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", range(4))
def test_context_answers_its_questions(name, seed):
    sample = _sample(name, seed=seed)
    for question in sample.questions:
        answer = solve(sample.context, question.text)
        assert score(answer, question.references) == 1
        if "common" not in question.text:
            assert answer == question.answer


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_answered_by_the_context_alone(name):
    """The references are not in the question, nor in another context's answer."""
    sample, other = _sample(name), _sample(name, seed=9)
    for question, others in zip(sample.questions, other.questions, strict=True):
        assert score(question.text, question.references) == 0
        assert score(others.answer, question.references) == 0


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_sparse_contexts_are_filler_and_dense_ones_facts(name, length):
    share = _share_of_facts(_sample(name, length).context)
    if name.endswith("_dense"):
        assert share > 0.95
    else:
        assert 0.04 < share <= 0.1


@pytest.mark.parametrize("name", [n for n in TASKS if "words" not in n])
def test_more_could_be_asked_about_than_is(name):
    """Nothing marks a fact that is asked about: most of its kind are not."""
    sample = _sample(name, 2048)
    planted = [s for s in sentences(sample.context) if not is_stock(s)]
    words = f"{' '.join(q.text for q in sample.questions)} "
    asked = [s for s in planted if " ".join(s[:4]) + " " in words]
    assert 0 < len(asked) < len(planted) / 2


def test_filler_is_the_stock_in_turn():
    filler = [s for s in sentences(_sample("single_needle").context) if is_stock(s)]
    said = [f"{' '.join(words)} ." for words in filler]
    assert said == [STOCK[i % len(STOCK)] for i in range(len(said))]


@pytest.mark.parametrize("name", TASKS)
def test_answers_contain_their_references(name):
    tokenizer = word_tokenizer()
    for question in _sample(name).questions:
        assert score(question.answer, question.references) == 1
        assert score("", question.references) == 0
        ids = tokenizer.encode(question.answer, add_special_tokens=False).ids
        assert BOS not in ids
        assert score(tokenizer.decode(ids), question.references) == 1


def test_values_have_every_length():
    counts = {
        len(reference.split())
        for seed in range(12)
        for question in _sample("single_needle", seed=seed).questions
        for reference in question.references
    }
    assert {1, 8} <= counts and len(counts) >= 6


@pytest.mark.parametrize("name", ["single_needle", "two_hop_dense"])
def test_depth_is_where_the_asked_fact_begins(name):
    depths = []
    for seed in range(20):
        sample = _sample(name, 512, seed)
        for question in sample.questions:
            opening = question.text.split(" ", 1)[1]
            at = sample.context.index(f"{opening} ")
            assert question.depth == pytest.approx(at / len(sample.context))
            depths.append(question.depth)
    assert min(depths) < 0.2 and max(depths) > 0.8


@pytest.mark.parametrize("name", TASKS)
def test_seed_decides_everything(name):
    again = task(name)(word_tokenizer(), 1024, np.random.default_rng(3))
    assert _sample(name, seed=3) == again
    assert _sample(name, seed=4) != again


@pytest.mark.parametrize("name", TASKS)
def test_too_short_is_an_error(name):
    with pytest.raises(ValueError, match="does not fit into 16 tokens"):
        _sample(name, 16)


def test_as_many_questions_as_asked_for():
    sample = SingleNeedle(asked=4)(word_tokenizer(), 512, np.random.default_rng(0))
    assert len(sample.questions) == len({q.text for q in sample.questions}) == 4
    with pytest.raises(ValueError, match="asked=0"):
        SingleNeedle(asked=0)


def test_names_pair_up_and_the_mean_is_of_known_tasks():
    sparse = [name for name in TASKS if not name.endswith("_dense")]
    assert list(TASKS) == [f"{n}{form}" for n in sparse for form in ("", "_dense")]
    assert set(IN_MEAN) <= set(TASKS) and len(set(IN_MEAN)) == len(IN_MEAN)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="single_needle, single_needle_dense"):
        task("needle")


def test_score_counts_references():
    references = ("a b c d", "e f g h")
    assert score(" a b\n c  d . the", references) == 0.5
    assert score("e f g h and a b c d .", references) == 1
    assert score("a b c . d e f g", references) == 0
    assert score("the bears.", ("bear",)) == 0
    assert score("the bear.", ("bear",)) == 1
