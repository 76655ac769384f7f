"""Text that no training saw, whose end is partly known from far back.

The context is sentences of every kind, in random order. The continuation goes on like
it: half of its sentences were said before, word for word, in the first three quarters
of the context; the others are new. After the first words of a sentence that was said
before, a model that still has it predicts the rest, and one that has lost it cannot: so
the perplexity of the continuation, given a compressed context, says what was lost
without asking anything.

Training draws its text anew in every step (`jaxkv.train.documents`), by another
generator: a seed's text is in no training set, but for the odd short sentence.
"""

from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.language import Assignment, link
from jaxkv.evaluate.tasks.base import draw_fact

CONTINUATION = 192
"""The tokens of the continuation; less where that is over a quarter of the length."""

REFERENCES = 0.5
"""The share of the continuation's sentences that the context has said."""

FAR = 0.75
"""References are to this first share of the context's sentences."""


def held_out(
    tokenizer: Tokenizer, length: int, rng: np.random.Generator
) -> tuple[str, str]:
    """(context, continuation), together at most `length` tokens and nearly so.

    Both are whole sentences. What a model sees is the context, a space and the
    continuation; the perplexity of the latter's tokens is measured. The text is a
    function of the arguments.

    Raises:
      ValueError: `length` is below 64 tokens.
    """
    if length < 64:
        raise ValueError(f"length={length}; held-out text takes at least 64 tokens.")
    size = min(CONTINUATION, length // 4)
    start = len(tokenizer.encode("").ids)
    taken: set[tuple[str, str]] = set()
    context, _ = _fill(tokenizer, length - size - start, lambda: _new(rng, taken))
    far = context[: max(1, int(FAR * len(context)))]
    again = iter([far[i] for i in rng.permutation(len(far))])

    def draw() -> str:
        said = next(again, None) if rng.random() < REFERENCES else None
        return said or _new(rng, taken)

    continuation, _ = _fill(tokenizer, size, draw)
    return " ".join(context), " ".join(continuation)


def _new(rng: np.random.Generator, taken: set[tuple[str, str]]) -> str:
    """A sentence of a new key: a fact, a link to a new fact, or an assignment."""
    fact = draw_fact(rng, taken)
    kind = rng.random()
    if kind < 0.5:
        return fact.text
    if kind < 0.75:
        return link(draw_fact(rng, taken), fact).text
    return Assignment(*fact.key, fact.values).text


def _fill(
    tokenizer: Tokenizer, room: int, draw: Callable[[], str]
) -> tuple[list[str], int]:
    """(drawn sentences of at most `room` tokens, how many tokens they are)."""
    sentences: list[str] = []
    used = 0
    while True:
        sentence = draw()
        size = len(tokenizer.encode(f" {sentence}", add_special_tokens=False).ids)
        if used + size > room:
            return sentences, used
        sentences.append(sentence)
        used += size
