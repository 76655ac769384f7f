"""The page: what the tiles of P slots look like in memory, known to no one else.

A pool's entries are two arrays of rank-2 tiles, keys [.., P, H] and values [.., P, H]
(`Entry`). In one tile [2P, H] XLA would copy each half before it multiplies: measured
on an H200, a layer of 32768 slots a head at batch 8 took 1134 us so, and 460 us apart.

On a TPU a head that is no whole number of 128 lanes has key and value in one row that
is (`SideBySide`). XLA lays an array [.., 128, 64] or [.., 128, 96] with P along the
lanes, where it pads less, and copies all of it for whatever goes by slots; rows of
whole lanes it leaves alone. Heads of 128 stay apart: side by side the decode kernel's
loop would be 3 to 15 % longer on three generations, by the compiler's schedule.

An entry without values of its own is one tile [.., P, H] (`Latent`): a latent, which
is key and value in one. On a TPU its rows are whole lanes, too, for the same reason.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.call import shape
from pallas_kernels.dispatch import platform

LANES = 128  # of a TPU's registers and of its tiles
FEWEST_SLOTS = 64  # a page's slots in a small pool
FEWEST_ON_TPU = 128  # fewer leave lanes empty, and positions are copied in each layer
MOST_SLOTS = 512  # larger pages read faster through XLA, and waste more of the last one
PAGES = 64  # about as many pages a head as a pool should have at least


class Entry(NamedTuple):
    """What the slots of a pool hold."""

    k: Float[Array, "B J pages P H"]
    v: Float[Array, "B J pages P H"]

    @property
    def lanes(self) -> int:
        """That a TPU kernel reads for a key, from a tile's first, or a value."""
        return self.k.shape[-1]

    @property
    def value_lane(self) -> int:
        """Of the last `lanes` of the last tile, the first that holds a value."""
        return 0

    def value_at(self, *index: Int[Array, "..."]) -> Float[Array, "*A H"]:
        """The values v[index], without a copy of all values."""
        return self.v[index]

    def like(self, k: Float[Array, "*A H"], v: Any) -> "Entry":
        """Keys and values of other slots, laid out as these."""
        return Entry(k, v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SideBySide:
    """The same, each slot's key and value in one row of W = `row_lanes(H)` numbers.

    The key begins the first half of the row and the value the second; what is left of
    the halves is 0.
    """

    row: Any  # [B, J, pages, P, W]; without the first axes inside vmap
    head_dim: int = field(metadata={"static": True})

    @property
    def k(self) -> Float[Array, "*A H"]:
        return self.row[..., : self.head_dim]

    @property
    def v(self) -> Float[Array, "*A H"]:
        half = self.row.shape[-1] // 2
        return self.row[..., half : half + self.head_dim]

    @property
    def lanes(self) -> int:
        """That a TPU kernel reads for a key, from a tile's first, or a value."""
        return max(self.row.shape[-1] // 2, LANES)

    @property
    def value_lane(self) -> int:
        """Of the last `lanes` of the last tile, the first that holds a value."""
        return self.lanes - self.row.shape[-1] // 2

    def value_at(self, *index: Int[Array, "..."]) -> Float[Array, "*A H"]:
        """The values v[index], without a copy of all values."""
        return SideBySide(self.row[index], self.head_dim).v

    def like(self, k: Float[Array, "*A H"], v: Any) -> "SideBySide":
        """Keys and values of other slots, laid out as these."""
        return side_by_side(k, v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Latent:
    """One row a slot, of which whoever reads it takes key and value.

    What is left of a row of W = `whole_lanes(H)` numbers on a TPU is 0; elsewhere
    nothing is left.
    """

    row: Any  # [B, J, pages, P, W]; without the first axes inside vmap
    head_dim: int = field(metadata={"static": True})

    @property
    def k(self) -> Float[Array, "*A H"]:
        return self.row[..., : self.head_dim]

    @property
    def v(self) -> Any:
        """There are none beside the keys."""
        return None

    @property
    def lanes(self) -> int:
        """That a TPU kernel reads for a key or a value, from a row's first."""
        return self.row.shape[-1]

    @property
    def value_lane(self) -> int:
        """Of the last `lanes` of a row, the first that holds a value."""
        return 0

    def value_at(self, *index: Int[Array, "..."]) -> Any:
        """There are none beside the keys."""
        return None

    def like(self, k: Float[Array, "*A H"], v: Any) -> "Latent":
        """Latents of other slots, laid out as these."""
        return in_rows(k, self.row.shape[-1])


KeysAndValues = Entry | SideBySide
AnyEntry = KeysAndValues | Latent


def in_rows(k: Float[Array, "*A H"], lanes: int) -> Latent:
    """Entries without values, filled up to so many numbers a slot."""
    H = k.shape[-1]
    return Latent(jnp.pad(k, [(0, 0)] * (k.ndim - 1) + [(0, lanes - H)]), H)


def side_by_side(k: Float[Array, "*A H"], v: Float[Array, "*A H"]) -> SideBySide:
    """Keys and values as a TPU holds them."""
    H = k.shape[-1]
    spare = [(0, 0)] * (k.ndim - 1) + [(0, row_lanes(H) // 2 - H)]
    row = jnp.concatenate([jnp.pad(k, spare), jnp.pad(v, spare)], axis=-1)
    return SideBySide(row, H)


def row_lanes(head_dim: int) -> int:
    """W, the numbers that a slot's key and value take up: 128, or 256, 512, ..."""
    if 2 * head_dim <= LANES:
        return LANES
    return 2 * whole_lanes(head_dim)


def whole_lanes(numbers: int) -> int:
    """So many, rounded up to whole registers of a TPU."""
    return -(-numbers // LANES) * LANES


def stored(k: Float[Array, "*A H"], v: Float[Array, "*A H"] | None) -> AnyEntry:
    """Keys and values, or latents without values, as the platform's pools hold them."""
    on_tpu, H = platform() == "tpu", k.shape[-1]
    if v is None:
        return in_rows(k, whole_lanes(H) if on_tpu else H)
    return side_by_side(k, v) if on_tpu and H % LANES else Entry(k, v)


def entry_shape(dtype: DTypeLike, *sizes: int, values: bool = True) -> AnyEntry:
    """What stands for the entries of a pool [B, J, pages, P, H], without content."""
    x = shape(dtype, *sizes)
    return jax.eval_shape(stored, x, x if values else None)


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
    v: Float[Array, "S R H"] | None,
    token: Int[Array, "pages P"],
    row: Int[Array, "pages P"],
) -> AnyEntry:
    """One pool's entries: slot s of page p holds token[p, s] of row[p, s]."""
    return stored(k[token, row], None if v is None else v[token, row])


def write(
    entry: AnyEntry,
    page: Int[Array, "R T"],
    slot: Int[Array, "R T"],
    k: Float[Array, "R T H"],
    v: Float[Array, "R T H"] | None,
) -> AnyEntry:
    """Writes entries at (page, slot) of one pool; outside the pool they are dropped."""

    def put(x, new):
        return x.at[page, slot].set(new.astype(x.dtype), mode="drop")

    return jax.tree.map(put, entry, entry.like(k, v))
