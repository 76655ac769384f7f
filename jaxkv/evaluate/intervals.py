"""95 % intervals of a mean score, and of its difference to another row's.

A paired bootstrap over contexts, within each task: the contexts of a task are drawn
anew with replacement, 2000 times from a fixed seed, the same draw for every row.
Questions about one context stay together, since they share what was compressed.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

RESAMPLES = 2000


def interval(scores: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over tasks of `scores`, a task's mean per context.

    For a difference, give the difference of two rows' scores. Equal scores throughout
    give an interval of no width: few contexts say little, and it shows no doubt. None
    where some task has one context, which says nothing of others.
    """
    sizes = tuple(len(task) for task in scores)
    if min(sizes) < 2:
        return None
    pairs = zip(scores, _resamples(sizes), strict=True)
    means = np.mean([task[chosen].mean(axis=1) for task, chosen in pairs], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(sizes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(size, size=(RESAMPLES, size)) for size in sizes]
