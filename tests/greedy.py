"""What a model says next by its own forward pass, nothing cached."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxkv.models.decoder import Decoder


def greedy(
    model: Decoder, prompts: Sequence[Sequence[int]], new: int
) -> list[list[int]]:
    """The `new` most likely tokens after each prompt, one after another."""
    forward = jax.jit(lambda model, ids: model(ids))
    lengths, every = np.array([len(row) for row in prompts]), np.arange(len(prompts))
    ids = np.zeros((len(prompts), lengths.max() + new), np.int32)
    for i, row in enumerate(prompts):
        ids[i, : len(row)] = row
    for step in range(new):
        logits = np.asarray(forward(model, ids))[every, lengths + step - 1]
        ids[every, lengths + step] = logits.argmax(axis=-1)
    return [ids[i, n : n + new].tolist() for i, n in enumerate(lengths)]
