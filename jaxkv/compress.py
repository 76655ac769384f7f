"""The spine: what a layer has seen, and a method, to the pages it keeps.

score -> budget -> select -> merge -> cache -> pack. Nothing here knows when it runs:
generate.py does.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.pages import Pages, PoolShape, pack
from jaxkv.kept import TRAIL, Kept
from jaxkv.method import Method
from jaxkv.seen import Seen


def compress(
    seen: Seen,
    method: Method,
    slots: Int[Array, "B K"],
    shape: PoolShape,
    *,
    scores: Float[Array, "B K S"] | None = None,
    limit: Int[Array, "B K"] | None = None,
) -> Pages:
    """One layer's keys and values (or a whole model's, as rows), cut to budget.

    slots is each head's own budget before scores are seen (data); shape is the pool's
    static size. Heads share budgets within their group of shape.groups only, and none
    gets more slots than it has tokens. scores: where they had to be made before. limit:
    what heads may grow to, where every step evicts.
    """
    B, S, K, _ = seen.k.shape
    J, R = shape.groups, shape.rows
    scores_BKS = method.score(seen) if scores is None else scores
    # Masks are [B, 1, S] as long as all heads have the same tokens.
    has_BXS = seen.by_head(seen.stored)
    protected_BXS = has_BXS & method.score.protected(seen)[:, None]
    candidate_BXS = has_BXS & ~protected_BXS
    by_group = (B, 1, 1, S) if has_BXS.shape[1] == 1 else (B, J, R, S)
    stored_B = seen.stored.sum(axis=1)
    length_BJR = method.budget(
        scores_BKS.reshape(B, J, R, S),
        protected_BXS.reshape(by_group),
        candidate_BXS.reshape(by_group),
        jnp.minimum(slots, stored_B[:, None]).reshape(B, J, R),
    )
    length_BK = length_BJR.reshape(B, K)
    if seen.earlier is not None:  # some heads may have fewer tokens than slots
        length_BK = jnp.minimum(length_BK, has_BXS.sum(axis=-1))
    order_BKO = method.select(
        seen,
        scores_BKS,
        protected_BXS,
        candidate_BXS,
        length_BK,
        min(shape.most, shape.total),
    )
    of_rows = {} if seen.trail is None else {TRAIL: seen.trail}
    kept = Kept(seen.k, seen.v, seen.position, order_BKO, length_BK, {}, of_rows)
    if limit is not None:
        carried = method.score.carried(scores_BKS)
        of_rows = of_rows | {"limit": limit}
        kept = replace(kept, slot_state=carried, row_state=of_rows)
    kept = method.cache(seen, method.merge(seen, kept))
    return pack(kept, stored_B, shape)
