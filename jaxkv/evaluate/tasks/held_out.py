"""Text whose words hang on what stands far before them, to measure perplexity on."""

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.tasks.base import SHORTEST_SENTENCE, draw_filler

MENTIONED = 0.5


def held_out(
    tokenizer: Tokenizer, length: int, rng: np.random.Generator
) -> tuple[str, str]:
    """(context, continuation) of at most `length` tokens, an eighth of them the latter.

    Half of the continuation's sentences stand in the context, word for word.

    Raises:
      ValueError: not even a sentence of each fits.
    """
    most = length // SHORTEST_SENTENCE + 1
    context = draw_filler(rng, most, set(), 0.0)
    longest = len(tokenizer.encode(" ".join(context)).ids)
    count = most * length * 7 // (8 * longest)
    if count < 2:
        raise ValueError(f"Held-out text does not fit into {length} tokens; give more.")
    context = context[:count]
    continuation = draw_filler(rng, count // 7 or 1, set(), 0.0)
    for i in range(len(continuation)):
        if rng.random() < MENTIONED:
            continuation[i] = context[int(rng.integers(count))]
    return " ".join(context), " ".join(continuation)
