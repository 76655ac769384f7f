"""The definition of pack_pages and append_entries, slot by slot in NumPy.

pack_pages: slot s of page p holds the entry of token source[p, s] of the page's owner;
a source of -1 leaves the slot empty (position -1, entry unspecified).

Latents have no values: v is None, and so are the pool's.

append_entries: new entry t of row r goes to (page[r, t], slot[r, t]); a page outside
the pool drops it.
"""

from typing import Any

import numpy as np


def pack_pages(k, v, token_position, owner, source):
    """k, v [B, S, J, R, H], token_position [B, S], owner [B, J, pages], source
    [B, J, pages, P] to keys and values [B, J, pages, P, H] and position
    [B, J, pages, P].
    """
    B, J, pages, P = source.shape
    keys = np.zeros((B, J, pages, P, k.shape[-1]), k.dtype)
    values: Any = None if v is None else np.zeros_like(keys)
    position = np.full((B, J, pages, P), -1, np.int32)
    for b, j, p, s in np.ndindex(B, J, pages, P):
        token, row = source[b, j, p, s], owner[b, j, p]
        if token >= 0 and row >= 0:
            keys[b, j, p, s] = k[b, token, j, row]
            if v is not None:
                values[b, j, p, s] = v[b, token, j, row]
            position[b, j, p, s] = token_position[b, token]
    return keys, values, position


def append_entries(keys, values, position, k, v, new_position, page, slot):
    """k, v [B, T, J, R, H], new_position [B, T], page and slot [B, J, R, T]."""
    keys, position = keys.copy(), position.copy()
    values: Any = None if v is None else values.copy()
    pages, P = position.shape[2:]
    for b, j, r, t in np.ndindex(page.shape):
        p, s = page[b, j, r, t], slot[b, j, r, t]
        if 0 <= p < pages:
            keys[b, j, p, s] = k[b, t, j, r]
            if v is not None:
                values[b, j, p, s] = v[b, t, j, r]
            position[b, j, p, s] = new_position[b, t]
    return keys, values, position
