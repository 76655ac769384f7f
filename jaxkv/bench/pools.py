"""Random pools of one layer, as decoding finds them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from pallas_kernels.layout import stored


def random_pool(
    lengths: Int[np.ndarray, "B K"],
    page: int,
    head_dim: int,
    dtype: DTypeLike,
    seed: int = 0,
    values: bool = True,
) -> dict:
    """The arguments of ragged_decode but its queries; pages in random order.

    Row r of sequence b holds lengths[b, r] slots, at the positions from 0 on. values:
    beside keys; without them the pool is one of latents, as latent_decode reads it.
    """
    B, K = lengths.shape
    rng = np.random.default_rng(seed)
    need = -(-lengths // page)
    pages = max(int(need.sum(axis=1).max()), 1)
    owner = np.full((B, 1, pages), -1, np.int32)
    table = np.full((B, 1, K, max(int(need.max()), 1)), -1, np.int32)
    position = np.full((B, 1, pages, page), -1, np.int32)
    for b in range(B):
        order, at = rng.permutation(pages), 0
        for r in range(K):
            mine = order[at : at + need[b, r]]
            at += need[b, r]
            owner[b, 0, mine], table[b, 0, r, : len(mine)] = r, mine
            filled = np.arange(len(mine) * page, dtype=np.int32)
            filled[lengths[b, r] :] = -1
            position[b, 0, mine] = filled.reshape(-1, page)
    shape = (B, 1, pages, page, head_dim)
    of_k, of_v = jax.random.split(jax.random.key(seed))
    k = jax.random.normal(of_k, shape, dtype)
    v = jax.random.normal(of_v, shape, dtype) if values else None
    return dict(
        entry=stored(k, v),
        owner=jnp.asarray(owner),
        position=jnp.asarray(position),
        q_position=jnp.full((B, 1), max(int(lengths.max()) - 1, 0), jnp.int32),
        table=jnp.asarray(table),
        length=jnp.asarray(lengths[:, None], jnp.int32),
    )
