"""Prompts to padded batches, and one sentence for what cannot be one."""

import numpy as np
import pytest

from jaxkv.prompts import SMALLEST, bucket, pad


def test_buckets_are_powers_of_two():
    lengths = [1, SMALLEST, SMALLEST + 1, 1024, 1025, 8192]
    expected = [SMALLEST, SMALLEST, 2 * SMALLEST, 1024, 2048, 8192]
    assert [bucket(n) for n in lengths] == expected
    assert [bucket(n, 8) for n in (0, 1, 8, 9, 17)] == [8, 8, 8, 16, 32]


def test_twenty_lengths_have_three_buckets():
    assert len({bucket(n) for n in range(100, 2048, 100)}) == 3


@pytest.mark.parametrize("form", [list, np.array, lambda ids: [list(ids)]])
def test_one_prompt_is_a_batch_of_one(form):
    prompts = pad(form([3, 1, 2]), vocabulary=8, longest=16, smallest=4)
    np.testing.assert_array_equal(prompts.token_ids, [[3, 1, 2, 0]])
    np.testing.assert_array_equal(prompts.lengths, [3])
    assert prompts.token_ids.dtype == prompts.lengths.dtype == np.int32


def test_unequal_prompts_pad_to_the_right():
    prompts = pad([[1, 2, 3, 4, 5], [6], [7, 7]], 8, 16, smallest=4)
    np.testing.assert_array_equal(
        prompts.token_ids,
        [[1, 2, 3, 4, 5, 0, 0, 0], [6, *[0] * 7], [7, 7, *[0] * 6]],
    )
    np.testing.assert_array_equal(prompts.lengths, [5, 1, 2])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "The prompt is empty"),
        ([[1], []], "Prompt 1 is empty"),
        ([1, -1], "Token id -1 of prompt 0"),
        ([[1], [2, 8]], "Token id 8 of prompt 1"),
        (np.array([[1.5]]), "not whole token ids"),
        ([1] * 17, "Prompt 0 has 17 tokens, and the model takes 16"),
    ],
)
def test_bad_prompts_are_one_sentence(prompt, said):
    with pytest.raises(ValueError, match=said) as error:
        pad(prompt, vocabulary=8, longest=16)
    assert "\n" not in str(error.value)
