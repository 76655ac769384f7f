"""column_scores through XLA: one pass for few queries, two blocked passes for many.

    few    z of all queries and keys of one row exists once: softmax and reduce
    many   first lse, query block by query block, with a running maximum and sum over
           the key blocks; then the columns, key block by key block, over the query
           blocks: exp(z - lse). Twice the products, and one block of z at a time.

Blocks that the order of positions leaves empty (all keys after all queries) are
skipped, which for a prompt's own tokens is half of them, where rows go one by one. On a
CPU they do, and a row's kv heads too, so that a block stays in its cache; elsewhere
as many rows go together as fit.

There is no usable gradient: scores choose, and nothing is trained through them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import any_live, blocks, map_rows
from pallas_kernels.dispatch import platform

FEW = 128  # queries that go in one pass
BLOCKS = {"cpu": (256, 512)}  # queries and keys of a block
ELSEWHERE = (512, 2048)
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
    """As `reference.column_scores`; `pallas_kernels.column_scores` says the rest."""
    group = group_of(reduce, group)
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    G = N // K
    rows = (
        q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4),
        k.swapaxes(1, 2),
        q_position,
        k_position,
        None if lse is None else lse.reshape(B, T, K, G).transpose(0, 2, 3, 1),
    )
    score = partial(_few if T <= FEW else _many, scale=scale, reduce=reduce)
    some, many = (T, S) if T <= FEW else BLOCKS.get(platform(), ELSEWHERE)
    logits = N * min(T, some) * min(S, many)
    by_head_BKGS, lse_BKGT = map_rows(lambda row: score(*row), rows, logits)
    by_group = by_head_BKGS.mean if group == "mean" else by_head_BKGS.max
    return by_group(axis=2), lse_BKGT.transpose(0, 3, 1, 2).reshape(B, T, N)


def group_of(reduce: str, group: str | None) -> str:
    """How the group is reduced: as told, or as `reduce` asks for.

    Raises:
      ValueError: `reduce` is not sum or max, or `group` not mean or max.
    """
    if reduce not in REDUCE:
        raise ValueError(f"reduce={reduce!r} is not one of {', '.join(REDUCE)}.")
    group = REDUCE[reduce] if group is None else group
    if group not in REDUCE.values():
        raise ValueError(f"group={group!r} is neither mean nor max.")
    return group


def _few(q_KGTH, k_KSH, q_position, k_position, lse_KGT, *, scale, reduce):
    """One row's columns [K, G, S] and lse [K, G, T], from logits that exist whole."""
    z_KGTS = _logits(q_KGTH, k_KSH, q_position, k_position, scale)
    if lse_KGT is None:
        highest_KGT = z_KGTS.max(axis=-1)
        total_KGT = jnp.exp(z_KGTS - _finite(highest_KGT)[..., None]).sum(axis=-1)
        lse_KGT = _log(highest_KGT, total_KGT)
    return _over_queries(z_KGTS, lse_KGT, reduce), lse_KGT


def _many(q_KGTH, k_KSH, q_position, k_position, lse_KGT, *, scale, reduce):
    """As `_few`, with one block of logits at a time."""
    score = partial(_two_passes, scale=scale, reduce=reduce)
    if platform() != "cpu":
        return score(q_KGTH, k_KSH, q_position, k_position, lse_KGT)

    def one(head):
        q_KGTH, k_KSH, lse_KGT = jax.tree.map(lambda x: x[None], head)
        return score(q_KGTH, k_KSH, q_position, k_position, lse_KGT)

    columns, lse = jax.lax.map(one, (q_KGTH, k_KSH, lse_KGT))
    return columns[:, 0], lse[:, 0]


def _two_passes(q_KGTH, k_KSH, q_position, k_position, lse_KGT, *, scale, reduce):
    K, G, T, _ = q_KGTH.shape
    S = k_KSH.shape[1]
    some, many = BLOCKS.get(platform(), ELSEWHERE)
    keys = blocks(k_KSH, 1, many, 0), blocks(k_position, 0, many, -1)
    queries = blocks(q_KGTH, 2, some, 0), blocks(q_position, 0, some, -1)
    if lse_KGT is None:
        own = partial(_own_lse, keys=keys, scale=scale)
        lse_XKGT = jax.lax.map(lambda block: own(*block), queries)
        lse_KGT = jnp.moveaxis(lse_XKGT, 0, 2).reshape(K, G, -1)[..., :T]
    else:
        lse_XKGT = blocks(lse_KGT, 2, some, 0.0)
    column = partial(_column, queries=(*queries, lse_XKGT), scale=scale, reduce=reduce)
    column_XKGS = jax.lax.map(lambda block: column(*block), keys)
    return jnp.moveaxis(column_XKGS, 0, 2).reshape(K, G, -1)[..., :S], lse_KGT


def _own_lse(q_KGTH, q_position, *, keys, scale):
    """[K, G, T] log sum exp of one block of queries over all blocks of keys."""
    K, G, T, _ = q_KGTH.shape

    def fold(running, k_KSH, k_position):
        highest_KGT, total_KGT = running
        z_KGTS = _logits(q_KGTH, k_KSH, q_position, k_position, scale)
        higher_KGT = jnp.maximum(highest_KGT, z_KGTS.max(axis=-1))
        shift_KGT = _finite(higher_KGT)
        shrink_KGT = jnp.exp(highest_KGT - shift_KGT)
        new_KGT = jnp.exp(z_KGTS - shift_KGT[..., None]).sum(axis=-1)
        return higher_KGT, total_KGT * shrink_KGT + new_KGT

    def step(running, block):
        some = any_live(q_position, block[1])
        return jax.lax.cond(some, fold, _unchanged, running, *block), None

    nothing = jnp.full((K, G, T), -jnp.inf), jnp.zeros((K, G, T))
    running, _ = jax.lax.scan(step, nothing, keys)
    return _log(*running)


def _column(k_KSH, k_position, *, queries, scale, reduce):
    """[K, G, S] scores of one block of keys under all blocks of queries."""
    K, S, _ = k_KSH.shape
    G = queries[0].shape[2]

    def fold(column_KGS, q_KGTH, q_position, lse_KGT):
        z_KGTS = _logits(q_KGTH, k_KSH, q_position, k_position, scale)
        new_KGS = _over_queries(z_KGTS, lse_KGT, reduce)
        if reduce == "max":
            return jnp.maximum(column_KGS, new_KGS)
        return column_KGS + new_KGS

    def step(column_KGS, block):
        some = any_live(block[1], k_position)
        return jax.lax.cond(some, fold, _unchanged, column_KGS, *block), None

    column_KGS, _ = jax.lax.scan(step, jnp.zeros((K, G, S)), queries)
    return column_KGS


def _logits(
    q_KGTH, k_KSH, q_position, k_position, scale: float
) -> Float[Array, "K G T S"]:
    """z, and -inf where a query does not see a key; a query at -1 sees none.

    A group's queries are the rows of one matrix, so that no product is transposed.
    """
    K, G, T, H = q_KGTH.shape
    z_KQS = jnp.einsum(
        "KQH,KSH->KQS",
        q_KGTH.reshape(K, G * T, H),
        k_KSH,
        preferred_element_type=jnp.float32,
    )
    key, query = k_position[None], q_position[:, None]
    live_TS = (key >= 0) & (key <= query)
    z_KGTS = z_KQS.reshape(K, G, T, -1)
    return jnp.where(live_TS[None, None], z_KGTS * scale, -jnp.inf)


def _log(highest_KGT, total_KGT) -> Float[Array, "K G T"]:
    """lse; where there is a key, the highest one adds 1 to the total."""
    return highest_KGT + jnp.log(jnp.maximum(total_KGT, 1.0))


def _over_queries(z_KGTS, lse_KGT, reduce) -> Float[Array, "K G S"]:
    """exp(z - lse), summed or the highest; 0 for a query whose lse is not finite."""
    lse_KGT1 = jnp.where(jnp.isfinite(lse_KGT), lse_KGT, jnp.inf)[..., None]
    if reduce == "sum":
        return jnp.exp(z_KGTS - lse_KGT1).sum(axis=2)
    return jnp.exp((z_KGTS - lse_KGT1).max(axis=2))  # one exponential a key


def _finite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, and 0 where there is nothing to shift by."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _unchanged(carry, *_):
    return carry
