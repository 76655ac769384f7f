"""column_scores through XLA: one pass for few queries, two blocked passes for many.

    few    z of all queries and keys of one row exists once: softmax and reduce
    many   first lse, query block by query block, with a running maximum and sum over
           the key blocks; then the columns, key block by key block, over the query
           blocks: exp(z - lse). Twice the products, and one block of z at a time.

Blocks that the order of positions leaves empty (all keys after all queries) are
skipped, which for a prompt's own tokens is half of them. Rows go one after another, and
on a CPU the kv heads of a row too, so that a block stays in its cache.

There is no usable gradient: scores choose, and nothing is trained through them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FEW = 128  # queries that go in one pass
QUERY_BLOCK = 128
KEY_BLOCK = 1024
LATEST = jnp.iinfo(jnp.int32).max
REDUCE = {"sum": "mean", "max": "max"}  # and the group's reduction when none is given


def column_scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, "B S"],
    *,
    scale: float,
    reduce: str = "sum",
    group: str | None = None,
    lse: Float[Array, "B T N"] | None = None,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """Attention to each key, reduced over the queries and then the group, and lse.

    As `reference.column_scores`. Positions may come in any order; -1 is no query or no
    key, and what stands there may be anything finite. A given lse replaces the
    queries' own, so that the softmax may run over other keys than the ones scored.

    Raises:
      ValueError: `reduce` is not sum or max, or `group` not mean or max.
    """
    if reduce not in REDUCE:
        raise ValueError(f"reduce={reduce!r} is not one of {', '.join(REDUCE)}.")
    group = REDUCE[reduce] if group is None else group
    if group not in REDUCE.values():
        raise ValueError(f"group={group!r} is neither mean nor max.")
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    rows = (
        q.reshape(B, T, K, N // K, H),
        k,
        q_position,
        k_position,
        None if lse is None else lse.reshape(B, T, K, N // K),
    )
    score = partial(_few if T <= FEW else _many, scale=scale, reduce=reduce)
    by_head_BKGS, lse_BTKG = jax.lax.map(lambda row: score(*row), rows)
    by_group = by_head_BKGS.mean if group == "mean" else by_head_BKGS.max
    return by_group(axis=2), lse_BTKG.reshape(B, T, N)


def _few(q_TKGH, k_SKH, q_position, k_position, lse_TKG, *, scale, reduce):
    """One row's columns [K, G, S] and lse [T, K, G], from logits that exist whole."""
    z_KGTS = _logits(q_TKGH, k_SKH, q_position, k_position, scale)
    if lse_TKG is None:
        highest_KGT = z_KGTS.max(axis=-1)
        total_KGT = jnp.exp(z_KGTS - _finite(highest_KGT)[..., None]).sum(axis=-1)
        lse_TKG = _log(highest_KGT, total_KGT)
    return _over_queries(_weights(z_KGTS, lse_TKG), reduce), lse_TKG


def _many(q_TKGH, k_SKH, q_position, k_position, lse_TKG, *, scale, reduce):
    """As `_few`, with one block of logits at a time."""
    score = partial(_two_passes, scale=scale, reduce=reduce)
    if jax.default_backend() != "cpu":
        return score(q_TKGH, k_SKH, q_position, k_position, lse_TKG)
    heads = (
        q_TKGH.swapaxes(0, 1)[:, :, None],
        k_SKH.swapaxes(0, 1)[:, :, None],
        None if lse_TKG is None else lse_TKG.swapaxes(0, 1)[:, :, None],
    )
    columns, lse = jax.lax.map(
        lambda head: score(head[0], head[1], q_position, k_position, head[2]), heads
    )
    return columns[:, 0], lse[:, :, 0].swapaxes(0, 1)


def _two_passes(q_TKGH, k_SKH, q_position, k_position, lse_TKG, *, scale, reduce):
    T, K, G, _ = q_TKGH.shape
    S = k_SKH.shape[0]
    keys = _blocks(k_SKH, KEY_BLOCK, 0), _blocks(k_position, KEY_BLOCK, -1)
    queries = _blocks(q_TKGH, QUERY_BLOCK, 0), _blocks(q_position, QUERY_BLOCK, -1)
    if lse_TKG is None:
        own = partial(_own_lse, keys=keys, scale=scale)
        lse_XTKG = jax.lax.map(lambda block: own(*block), queries)
        lse_TKG = lse_XTKG.reshape(-1, K, G)[:T]
    else:
        lse_XTKG = _blocks(lse_TKG, QUERY_BLOCK, 0.0)
    column = partial(_column, queries=(*queries, lse_XTKG), scale=scale, reduce=reduce)
    column_XKGS = jax.lax.map(lambda block: column(*block), keys)
    return jnp.moveaxis(column_XKGS, 0, 2).reshape(K, G, -1)[..., :S], lse_TKG


def _own_lse(q_TKGH, q_position, *, keys, scale):
    """[T, K, G] log sum exp of one block of queries over all blocks of keys."""
    T, K, G, _ = q_TKGH.shape

    def fold(running, k_SKH, k_position):
        highest_KGT, total_KGT = running
        z_KGTS = _logits(q_TKGH, k_SKH, q_position, k_position, scale)
        higher_KGT = jnp.maximum(highest_KGT, z_KGTS.max(axis=-1))
        shift_KGT = _finite(higher_KGT)
        shrink_KGT = jnp.exp(highest_KGT - shift_KGT)
        new_KGT = jnp.exp(z_KGTS - shift_KGT[..., None]).sum(axis=-1)
        return higher_KGT, total_KGT * shrink_KGT + new_KGT

    def step(running, block):
        some = _any_live(q_position, block[1])
        return jax.lax.cond(some, fold, _unchanged, running, *block), None

    nothing = jnp.full((K, G, T), -jnp.inf), jnp.zeros((K, G, T))
    running, _ = jax.lax.scan(step, nothing, keys)
    return _log(*running)


def _column(k_SKH, k_position, *, queries, scale, reduce):
    """[K, G, S] scores of one block of keys under all blocks of queries."""
    S, K, _ = k_SKH.shape
    G = queries[0].shape[3]

    def fold(column_KGS, q_TKGH, q_position, lse_TKG):
        z_KGTS = _logits(q_TKGH, k_SKH, q_position, k_position, scale)
        new_KGS = _over_queries(_weights(z_KGTS, lse_TKG), reduce)
        if reduce == "max":
            return jnp.maximum(column_KGS, new_KGS)
        return column_KGS + new_KGS

    def step(column_KGS, block):
        some = _any_live(block[1], k_position)
        return jax.lax.cond(some, fold, _unchanged, column_KGS, *block), None

    column_KGS, _ = jax.lax.scan(step, jnp.zeros((K, G, S)), queries)
    return column_KGS


def _logits(
    q_TKGH, k_SKH, q_position, k_position, scale: float
) -> Float[Array, "K G T S"]:
    """z, and -inf where a query does not see a key; a query at -1 sees none."""
    z_KGTS = jnp.einsum(
        "TKGH,SKH->KGTS", q_TKGH, k_SKH, preferred_element_type=jnp.float32
    )
    key, query = k_position[None], q_position[:, None]
    live_TS = (key >= 0) & (key <= query)
    return jnp.where(live_TS[None, None], z_KGTS * scale, -jnp.inf)


def _any_live(
    q_position: Int[Array, " T"], k_position: Int[Array, " S"]
) -> Bool[Array, ""]:
    """Whether any of the queries sees any of the keys."""
    return jnp.where(k_position >= 0, k_position, LATEST).min() <= q_position.max()


def _log(highest_KGT, total_KGT) -> Float[Array, "T K G"]:
    """lse; where there is a key, the highest one adds 1 to the total."""
    lse_KGT = highest_KGT + jnp.log(jnp.maximum(total_KGT, 1.0))
    return lse_KGT.transpose(2, 0, 1)


def _weights(z_KGTS, lse_TKG) -> Float[Array, "K G T S"]:
    """exp(z - lse), and 0 for a query whose lse is not finite."""
    shift_TKG = jnp.where(jnp.isfinite(lse_TKG), lse_TKG, jnp.inf)
    return jnp.exp(z_KGTS - shift_TKG.transpose(1, 2, 0)[..., None])


def _over_queries(a_KGTS, reduce) -> Float[Array, "K G S"]:
    return a_KGTS.sum(axis=2) if reduce == "sum" else a_KGTS.max(axis=2)


def _finite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, and 0 where there is nothing to shift by."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _unchanged(carry, *_):
    return carry


def _blocks(x: Array, size: int, fill: int | float) -> Array:
    """[X, size, ...]: x in blocks of `size`, the last one filled up."""
    size = min(size, x.shape[0])
    short = -x.shape[0] % size
    x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(-1, size, *x.shape[1:])
