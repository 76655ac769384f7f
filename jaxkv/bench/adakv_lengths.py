"""How many slots AdaKV really gives each head: the demo model's, on its own tasks."""

import numpy as np
from jaxtyping import Int

from jaxkv.evaluate.tasks import TASKS
from jaxkv.generate import compress
from jaxkv.method import method
from jaxkv.models.load import load

TOKENS = 4096
TASK = "multi_key"


def adakv_lengths(batch: int, heads: int, slots: int) -> list[Int[np.ndarray, "B K"]]:
    """Lengths [batch, heads] that sum to batch * heads * slots, for some layers.

    AdaKV's shares at keep 0.1 of a real prompt a sequence, on real scores. Layers stand
    side by side where one has fewer heads than asked for.
    """
    model, tokenizer = load("demo", "float32")
    assert tokenizer is not None
    contexts = [
        TASKS[TASK](tokenizer, TOKENS, np.random.default_rng(seed)).context
        for seed in range(batch)
    ]
    prompts = [tokenizer.encode(context).ids for context in contexts]
    kept = compress(model, prompts, method("adakv", keep=0.1)).lengths  # [L, B, K]
    layers, _, own = kept.shape
    together = heads // own
    groups = kept[: layers // together * together].reshape(-1, together, batch, own)
    return [
        _scaled(group.swapaxes(0, 1).reshape(batch, heads), slots) for group in groups
    ]


def _scaled(lengths, slots: int):
    """In the same proportions, with `slots` a head on average in every sequence."""
    B, K = lengths.shape
    share = lengths / lengths.sum(axis=1, keepdims=True)
    scaled = np.floor(share * slots * K).astype(int)
    scaled[:, 0] += slots * K - scaled.sum(axis=1)
    return scaled
