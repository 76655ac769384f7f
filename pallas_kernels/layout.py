"""The page: what the tiles of P slots look like in memory, known to no one else.

A pool's entries are two arrays of rank-2 tiles, keys [.., P, H] and values [.., P, H].
In one tile [2P, H] XLA would copy each half before it multiplies: measured on an H200,
a layer of 32768 slots a head at batch 8 took 1134 us so, and 460 us apart.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import platform

FEWEST_SLOTS = 64  # a page's slots in a small pool
FEWEST_ON_TPU = 128  # fewer leave lanes empty, and positions are copied in each layer
MOST_SLOTS = 512  # larger pages read faster through XLA, and waste more of the last one
PAGES = 64  # about as many pages a head as a pool should have at least


class Entry(NamedTuple):
    """What the slots of a pool hold."""

    k: Float[Array, "B J pages P H"]
    v: Float[Array, "B J pages P H"]


def page_slots(slots: int) -> int:
    """P, the slots in a page of a pool whose heads hold `slots` slots on average.

    A power of two from 64 (from 128 for a TPU) to 512: the part of a head's last page
    that stays empty is at most about 1/64 of the head in a pool of large pages.
    """
    power = 1 << (max(slots // PAGES, 1) - 1).bit_length()
    fewest = FEWEST_ON_TPU if platform() == "tpu" else FEWEST_SLOTS
    return min(max(power, fewest), MOST_SLOTS)


def gather(
    k: Float[Array, "S R H"],
    v: Float[Array, "S R H"],
    token: Int[Array, "pages P"],
    row: Int[Array, "pages P"],
) -> Entry:
    """One pool's entries: slot s of page p holds token[p, s] of row[p, s]."""
    return Entry(k[token, row], v[token, row])


def write(
    entry: Entry,
    page: Int[Array, "R T"],
    slot: Int[Array, "R T"],
    k: Float[Array, "R T H"],
    v: Float[Array, "R T H"],
) -> Entry:
    """Writes entries at (page, slot) of one pool; outside the pool they are dropped."""
    return Entry(
        entry.k.at[page, slot].set(k.astype(entry.k.dtype), mode="drop"),
        entry.v.at[page, slot].set(v.astype(entry.v.dtype), mode="drop"),
    )
