"""How many slots: each row's own budget, which is data, and the pools' static sizes.

Programs are compiled for pool sizes, and those come from the bucket that prompts pad
to; so prompts of many lengths share few programs. Layers whose budgets differ use at
most SIZES pool sizes, each rounded up, which shows as headroom.
"""

import numpy as np

from jaxkv.cache.pages import PoolShape
from jaxkv.heads import Heads
from jaxkv.method import Method
from pallas_kernels.layout import page_slots

SIZES = 4


def pool_shapes(
    method: Method, heads: Heads, longest: int, rerun: int, headroom: int, groups: int
) -> tuple[PoolShape, ...]:
    """A pool for each layer, or one for all, for prompts of up to `longest` tokens.

    rerun: how many of each prompt's last tokens are run again instead of stored.
    """
    L, K = heads.layers, heads.kv_heads
    bound_LK = method.budget.bound(method, longest, heads)
    bound_LK = np.maximum(bound_LK - rerun, 0)
    slots = method.slots(longest)
    most = max(method.budget.most(slots, longest) - rerun, int(bound_LK.max()), 0)
    page = page_slots(int(bound_LK.mean()))
    total_LJ = bound_LK.reshape(L, groups, -1).sum(axis=2)
    wide = method.budget.model_wide
    totals = [total_LJ.sum(axis=0).max()] if wide else _few(total_LJ.max(axis=1))
    span = L if wide else 1
    return tuple(
        PoolShape(
            groups=groups,
            rows=span * K // groups,
            total=int(total),
            most=most,
            headroom=headroom,
            page=page,
            span=span,
        )
        for total in totals
    )


def row_slots(
    method: Method, heads: Heads, lengths: np.ndarray, rerun: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slots [L, B, K] of each prompt's heads after prefill, and what they may grow to.

    The latter only counts in rows that evict at every step.
    """
    slots, limits = [], []
    for length in map(int, lengths):
        asked = method.slots(length)
        slots.append(np.maximum(method.budget.heads(asked, length, heads) - rerun, 0))
        limits.append(method.budget.limits(asked, length, heads))
    return np.stack(slots, axis=1), np.stack(limits, axis=1)


def _few(totals: np.ndarray) -> np.ndarray:
    """The sizes, each rounded up to one of at most SIZES of them."""
    levels = np.unique(totals)
    if len(levels) > SIZES:
        levels = np.array([part[-1] for part in np.array_split(levels, SIZES)])
    return levels[np.searchsorted(levels, totals)]
