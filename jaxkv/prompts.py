"""Prompts of unequal lengths to one padded batch of a bucketed length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST = 512  # prompts pad to a power of two from here, so that programs stay few


@dataclass(frozen=True)
class Prompts:
    """token_ids [B, S] padded to the right with 0, lengths [B]."""

    token_ids: np.ndarray
    lengths: np.ndarray


def bucket(length: int, smallest: int = SMALLEST) -> int:
    """The smallest power of two that holds `length`, from `smallest` up."""
    return max(smallest, 1 << max(length - 1, 0).bit_length())


def filled(prompts: Prompts, multiple: int) -> Prompts:
    """The prompts, and the first again until `multiple` divides their number."""
    B = len(prompts.lengths)
    at = [*range(B), *[0] * (-B % multiple)]
    return Prompts(prompts.token_ids[at], prompts.lengths[at])


def pad(
    token_ids: Sequence[Sequence[int]] | Sequence[int] | np.ndarray,
    vocabulary: int,
    longest: int,
    smallest: int = SMALLEST,
) -> Prompts:
    """One prompt (ints) or several (rows of ints) to a padded batch.

    Raises ValueError, in one sentence, for an empty prompt, a prompt longer than
    `longest`, or a token id outside the vocabulary.
    """
    if len(token_ids) == 0:
        raise ValueError("The prompt is empty; give at least one token.")
    nested = np.ndim(token_ids[0]) > 0
    rows = [np.asarray(row) for row in (token_ids if nested else [token_ids])]
    for i, row in enumerate(rows):
        if row.size == 0:
            raise ValueError(f"Prompt {i} is empty; give at least one token.")
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"Prompt {i} holds {row.dtype}, not whole token ids.")
        if row.min() < 0 or row.max() >= vocabulary:
            worst = int(row.min()) if row.min() < 0 else int(row.max())
            raise ValueError(
                f"Token id {worst} of prompt {i} is outside the model's vocabulary of "
                f"{vocabulary}; was it encoded with another tokenizer?"
            )
        if row.size > longest:
            raise ValueError(
                f"Prompt {i} has {row.size} tokens, and the model takes {longest}; "
                "shorten it."
            )
    lengths = np.array([row.size for row in rows], np.int32)
    padded = np.zeros((len(rows), bucket(int(lengths.max()), smallest)), np.int32)
    for i, row in enumerate(rows):
        padded[i, : row.size] = row
    return Prompts(padded, lengths)
