"""The spine: what a layer has seen, and a method, to the pages it keeps.

score -> budget -> select -> pack. Nothing here knows when it runs: generate.py does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxkv.cache.pages import Pages, PoolShape, pack
from jaxkv.method import Method
from jaxkv.seen import Seen
from pallas_kernels.layout import page_slots


def compress(
    seen: Seen, method: Method, slots: Int[Array, " B"], shape: PoolShape
) -> Pages:
    """One layer's keys and values, cut to `slots` slots a head on average.

    slots is each row's own budget (data); shape is the pool's static size. What is not
    kept is dropped. Heads share budgets within their group of shape.groups only.
    """
    B, S, K, _ = seen.k.shape
    scores_BKS = method.score(seen)
    protected_BS = method.score.protected(seen) & seen.stored
    candidate_BS = seen.stored & ~protected_BS
    length_BJR = method.budget(
        scores_BKS.reshape(B, shape.groups, shape.rows, S),
        protected_BS,
        candidate_BS,
        jnp.minimum(slots, seen.stored.sum(axis=1)),
    )
    length_BK = length_BJR.reshape(B, K)
    order_BKS = method.select(seen, scores_BKS, protected_BS, candidate_BS, length_BK)
    return pack(
        seen.k,
        seen.v,
        seen.position,
        order_BKS,
        length_BK,
        seen.stored.sum(axis=1),
        shape,
    )


def pool_shape(
    method: Method, length: int, rerun: int, headroom: int, rows: int, groups: int
) -> PoolShape:
    """The pool for prompts of up to `length` tokens, `rerun` of which are run again."""
    slots = max(method.slots(length) - rerun, 0)
    return PoolShape(
        groups=groups,
        rows=rows // groups,
        slots=slots,
        most=max(method.budget.most(slots, length), slots),
        headroom=headroom,
        page=page_slots(slots),
    )
