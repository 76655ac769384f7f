"""Rows to calibrate with: tasks of our own, or runs of a text."""

import pytest

from jaxkv.calibrate.rows import task_tokens, text_tokens
from jaxkv.train.tokenizer import word_tokenizer


def test_our_own_tasks_are_the_text():
    sequences = task_tokens(word_tokenizer(), 256)
    assert len(sequences) == len(set(sequences)) == 20
    assert all(200 < len(row) <= 256 for row in sequences)
    assert not set(sequences) & set(task_tokens(word_tokenizer(), 256, seed=1))
    assert len(task_tokens(word_tokenizer(), 256, count=23)) == 23
    endings = {tuple(row[-4:-2]) for row in sequences}
    assert len(endings) > 5  # questions of many kinds


def test_a_text_is_cut_into_runs():
    tokenizer = word_tokenizer()
    runs = text_tokens(tokenizer, "the calm fox sends axe . " * 10, 16)
    assert [len(run) for run in runs] == [16, 16, 16, 13]
    assert len(text_tokens(tokenizer, "the " * 9000, 16)) == 20
    assert len(text_tokens(tokenizer, "the " * 9000, 16, count=300)) == 300
    with pytest.raises(ValueError, match="The text is empty"):
        text_tokens(tokenizer, " \n", 16)
