"""Pools made for tests of ragged_decode, and its results laid out to be compared."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.layout import stored

GARBAGE = 1e4  # finite: NaN would leak through 0 * NaN
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2}  # of out and lse, absolute


def make(spec, lengths=None, dtype=jnp.float32, seed=0, values=True):
    """A pool with pages in no order, tokens in no order, garbage where nothing lives.

    lengths [B, J, R]; the queries stand at the newest positions. values: beside keys.
    """
    rng = np.random.default_rng(seed)
    B, J, R, P, pages = spec.B, spec.J, spec.R, spec.P, spec.pages
    if lengths is None:
        lengths = np.broadcast_to(spec.lengths, (B, J, R))
    newest = max(int(np.max(lengths)), spec.T)
    owner = np.full((B, J, pages), -1, np.int32)
    position = np.full((B, J, pages, P), -1, np.int32)
    table = np.full((B, J, R, spec.table), -1, np.int32)
    for b, j in np.ndindex(B, J):
        free = list(rng.permutation(pages))
        for r in range(R):
            tokens = rng.permutation(newest)[: lengths[b, j, r]]
            for m, start in enumerate(range(0, len(tokens), P)):
                page, now = free.pop(), tokens[start : start + P]
                owner[b, j, page], table[b, j, r, m] = r, page
                position[b, j, page, : len(now)] = now
        # A free page may hold an earlier owner's positions.
        position[b, j, free] = rng.integers(0, newest, (len(free), P))
    dead = ((owner < 0)[..., None] | (position < 0))[..., None]
    k, v = rng.normal(size=(2, B, J, pages, P, spec.H)).astype(np.float32)
    k, v = (jnp.asarray(np.where(dead, GARBAGE, x), dtype) for x in (k, v))
    entry = stored(k, v if values else None)
    q = rng.normal(size=(B, J, R, spec.T, spec.G, spec.H)) * 2
    q_position = np.broadcast_to(newest - spec.T + np.arange(spec.T), (B, spec.T))
    bias = rng.normal(size=position.shape).astype(np.float32) if spec.bias else None
    arrays = dict(
        q=jnp.asarray(q, dtype),
        entry=entry,
        owner=jnp.asarray(owner),
        position=jnp.asarray(position),
        q_position=jnp.asarray(q_position, jnp.int32),
        table=jnp.asarray(table),
        length=jnp.asarray(lengths, jnp.int32),
        bias=None if bias is None else jnp.asarray(bias),
    )
    static = dict(scale=spec.H**-0.5, soft_cap=spec.soft_cap, window=spec.window)
    return arrays, static


def by_table(arrays):
    """The arguments of the definition, which tells a row's pages by its table."""
    return {name: x for name, x in arrays.items() if name != "owner"}


def by_page(logits, table, pages):
    """The definition's logits [B J R T G S] as [B J pages T G P]; -inf elsewhere."""
    B, J, R, T, G, S = logits.shape
    M = table.shape[-1]
    parts = np.asarray(logits).reshape(B, J, R, T, G, M, S // M)
    found = np.full((B, J, pages, T, G, S // M), -np.inf, np.float32)
    for b, j, r, m in zip(*np.nonzero(np.asarray(table) >= 0), strict=True):
        found[b, j, table[b, j, r, m]] = parts[b, j, r, :, :, m]
    return found


def assert_out_and_lse(ours, theirs, dtype=jnp.float32):
    """Equal outputs and log-sum-exps: finite differences within the dtype's table."""
    limit = TOLERANCE[dtype]
    ours, theirs = (
        [np.asarray(x, np.float32) for x in side[:2]] for side in (ours, theirs)
    )
    for mine, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=limit, atol=limit)
