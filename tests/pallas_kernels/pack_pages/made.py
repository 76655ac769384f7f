"""Prompts, choices, pools and places made for tests of pack_pages."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.layout import stored


def prompt(spec, tokens, seed=0):
    """Keys and values [B, tokens, J, R, H] and positions that are not 0, 1, 2, ...

    Latents have no values.
    """
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, spec.B, tokens, spec.J, spec.R, spec.H))
    position = np.sort(rng.permutation(10_000)[: spec.B * tokens])
    position = position.reshape(spec.B, tokens).astype(np.int32)
    v = v.astype(np.float32) if spec.values else None
    return k.astype(np.float32), v, position


def choice(spec, seed=1):
    """Owners, some of them -1, and sources, some of them -1, in no order."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(-1, spec.R, (spec.B, spec.J, spec.pages), np.int32)
    owner[:, :, 0] = 0
    source = rng.integers(-1, spec.S, (*owner.shape, spec.P), np.int32)
    return owner, source


def pool(spec, dtype=jnp.float32):
    """A pool of which nothing is in use."""
    shape = (spec.B, spec.J, spec.pages, spec.P)
    k, v = np.random.default_rng(2).normal(size=(2, *shape, spec.H))
    v = jnp.asarray(v, dtype) if spec.values else None
    return stored(jnp.asarray(k, dtype), v), jnp.full(shape, -1)


def content(entry, position):
    """Keys, values where there are any, and positions, as the definition gives them."""
    kept = entry.k, entry.v, position
    return tuple(None if x is None else np.array(x) for x in kept)


def places(spec, seed=3):
    """A different (page, slot) for each new entry; some pages are outside the pool.

    Rows have pages of their own. A row's slots are neighbours in any order, or not.
    """
    rng = np.random.default_rng(seed)
    shape = (spec.B, spec.J, spec.R, spec.T)
    page, slot = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for b, j in np.ndindex(spec.B, spec.J):
        pages = rng.permutation(spec.pages)
        for r in range(spec.R):
            mine = pages[r :: spec.R]
            slots = len(mine) * spec.P
            at = rng.choice(slots, spec.T, replace=False)
            if rng.random() < 0.5:
                at = rng.permutation(at[0] + np.arange(spec.T)) % slots
            page[b, j, r], slot[b, j, r] = mine[at // spec.P], at % spec.P
    dropped = rng.random(shape) < 0.3
    return np.where(dropped, rng.choice([-1, -7, spec.pages], shape), page), slot
