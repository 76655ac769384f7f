"""95 % intervals of a mean score, and of its difference to another row's.

A paired bootstrap over contexts, within each task: the contexts of a task are drawn
anew with replacement, 2000 times from a fixed seed, the same draw for every row.
Questions about one context stay together, since they share what was compressed.
"""

from functools import lru_cache

import numpy as np

RESAMPLES = 2000


def interval(scores: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `scores` [tasks, samples], mean per context.

    For a difference, give the difference of two rows' scores. Equal scores throughout
    give an interval of no width: few contexts say little, and it shows no doubt. None
    for one context a task, which says nothing of others.
    """
    tasks, samples = scores.shape
    if samples < 2:
        return None
    chosen = _resamples(tasks, samples)
    means = np.take_along_axis(scores[None], chosen, axis=2).mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(tasks: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(samples, size=(RESAMPLES, tasks, samples))
