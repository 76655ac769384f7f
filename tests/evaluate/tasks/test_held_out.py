"""Held-out text: its length, its references far back, its seed."""

import numpy as np
import pytest

from jaxkv.evaluate.tasks import held_out
from jaxkv.train.tokenizer import word_tokenizer
from tests.evaluate.tasks.solver import sentences


def _text(length=2048, seed=0):
    return held_out(word_tokenizer(), length, np.random.default_rng(seed))


@pytest.mark.parametrize("length", [64, 512, 2048])
def test_text_fills_its_length(length):
    context, continuation = _text(length)
    size = len(word_tokenizer().encode(f"{context} {continuation}").ids)
    assert length - 26 < size <= length
    if length == 2048:
        assert 128 <= len(continuation.split()) <= 256


def test_half_of_the_continuation_was_said_far_back():
    far = total = 0
    for seed in range(10):
        context, continuation = _text(seed=seed)
        said = sentences(context)
        for words in sentences(continuation):
            total += 1
            if words in said:
                far += 1
                assert said.index(words) < 0.75 * len(said)
    assert 0.35 < far / total < 0.65


def test_new_sentences_have_new_keys():
    context, continuation = _text()
    keys = {tuple(words[:3]) for words in sentences(context)}
    for words in sentences(continuation):
        assert words in sentences(context) or tuple(words[:3]) not in keys


def test_seed_decides_everything():
    assert _text(seed=1) == _text(seed=1) != _text(seed=2)


def test_too_short_is_an_error():
    with pytest.raises(ValueError, match="at least 64"):
        _text(32)
