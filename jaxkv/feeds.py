"""Feeds: extra tokens that run against the full cache, only for what they look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxkv.prompts import Prompts


@dataclass(frozen=True)
class Repeat:
    """The prompt itself, once more, in chunks of `chunk` tokens.

    Before each chunk go the model's own words for it (`config.repeat_tokens`) and, from
    the second chunk on, the `overlap` tokens before the chunk.
    """

    chunk: int = 2048
    overlap: int = 8


@dataclass(frozen=True)
class Future:
    """What will really be asked and answered; only an evaluation knows it."""


@dataclass(frozen=True)
class Chunk:
    """One run: token_ids and position [B, F], -1 = padding; the prompt from start."""

    token_ids: np.ndarray
    position: np.ndarray
    start: int


def chunks(
    feed: Repeat | Future,
    prompts: Prompts,
    stored: np.ndarray,
    repeat_tokens: Sequence[int],
    future: Prompts | None,
) -> list[Chunk]:
    """The runs that a feed consists of, for prompts of which `stored` tokens stay.

    Raises ValueError when the future is asked for and not known.
    """
    if isinstance(feed, Repeat):
        return _repeats(feed, prompts, stored, repeat_tokens)
    if future is None:
        raise ValueError(
            "This method looks at the question and answer to come, which only compare "
            "knows; it is a ceiling, not a method to use."
        )
    real = np.arange(future.token_ids.shape[1])[None] < future.lengths[:, None]
    return [_run(future.token_ids, real, stored, 0)]


def _repeats(
    feed: Repeat, prompts: Prompts, stored: np.ndarray, repeat_tokens: Sequence[int]
) -> list[Chunk]:
    """One run a chunk, all of one shape; rows that are shorter are padded."""
    B, S = prompts.token_ids.shape
    size = min(feed.chunk, S)
    words = np.broadcast_to(
        np.asarray(repeat_tokens, np.int32), (B, len(repeat_tokens))
    )
    made = []
    for start in range(0, max(int(stored.max()), 1), size):
        at = np.arange(start - feed.overlap, start + size)
        token_ids = prompts.token_ids[:, at.clip(0, S - 1)]
        real = (at >= 0)[None] & (at[None] < stored[:, None])
        real &= stored[:, None] > start
        asked = np.broadcast_to(stored[:, None] > start, words.shape)
        made.append(
            _run(
                np.concatenate([words, token_ids], axis=1),
                np.concatenate([asked, real], axis=1),
                stored,
                start,
            )
        )
    return made


def _run(
    token_ids: np.ndarray, real: np.ndarray, stored: np.ndarray, start: int
) -> Chunk:
    """Real tokens stand one after another from the prompt's end on, padding after."""
    first = np.argsort(~real, axis=1, kind="stable")
    place = np.arange(real.shape[1])[None]
    position = np.where(place < real.sum(axis=1)[:, None], stored[:, None] + place, -1)
    token_ids = np.take_along_axis(token_ids, first, axis=1)
    return Chunk(token_ids.astype(np.int32), position.astype(np.int32), start)
