"""append_entries on Hopper through Pallas' Mosaic GPU backend, in place.

One warpgroup a row: its new keys and values pass through shared memory into the slots
of the pool, whose arrays are references that the kernel writes. XLA's scatters take
three programs for that, and three times as long.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.hopper import ALIGNED, check_entries
from pallas_kernels.layout import Entry

MOST = 8  # new tokens; more are no step of a decode loop, and XLA's scatter is as good


def append_entries(
    entry: Entry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"],
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
    *,
    interpret=None,
) -> tuple[Entry, Int[Array, "B J pages P"]]:
    """As `xla.append_entries`, of at most 8 tokens and 16-bit entries.

    Raises:
      ValueError: the dtype, head_dim or number of tokens is not one that this kernel
        takes.
    """
    check(entry, k)
    B, J, pages, _ = position.shape
    T, R, H = k.shape[1], *k.shape[3:]
    dtype = entry.k.dtype

    def body(k, v, new_position, page, slot, pool_k, pool_v, pool_position, *scratch):
        new_k, new_v, come = scratch
        b, j, r = (lax.axis_index(name) for name in ("row", "group", "head"))
        new_k, new_v = (x.at[:, pl.ds(0, H)] for x in (new_k, new_v))
        for t in range(T):
            plgpu.copy_gmem_to_smem(k.at[b, t, j, r], new_k.at[t], come)
            plgpu.copy_gmem_to_smem(v.at[b, t, j, r], new_v.at[t], come)
        places = [(page[b, j, r, t], slot[b, j, r, t]) for t in range(T)]
        plgpu.barrier_wait(come)
        for t, (p, s) in enumerate(places):

            @pl.when((p >= 0) & (p < pages))
            def _(t=t, p=p, s=s):
                plgpu.copy_smem_to_gmem(new_k.at[t], pool_k.at[b, j, p, s])
                plgpu.copy_smem_to_gmem(new_v.at[t], pool_v.at[b, j, p, s])
                pool_position[b, j, p, s] = new_position[b, t]

        plgpu.wait_smem_to_gmem(0)

    kernel = plgpu.kernel(
        body,
        out_type=(),
        scratch_types=[
            plgpu.SMEM((T, -(-H // ALIGNED) * ALIGNED), dtype),
            plgpu.SMEM((T, -(-H // ALIGNED) * ALIGNED), dtype),
            plgpu.Barrier(num_arrivals=2 * T),
        ],
        grid=(B, J, R),
        grid_names=("row", "group", "head"),
        interpret=interpret,
    )
    pool = [jax.new_ref(x) for x in (*entry, position)]
    kernel(k.astype(dtype), v.astype(dtype), new_position, page, slot, *pool)
    new_k, new_v, position = (jax.freeze(x) for x in pool)
    return Entry(new_k, new_v), position


def check(entry: Entry, k: Array) -> None:
    """Says what this kernel cannot take, and what to use."""
    use = "Use xla.append_entries."
    check_entries(entry.k.dtype, k.shape[-1], use)
    if k.shape[1] > MOST:
        raise ValueError(f"{k.shape[1]} tokens at once are more than {MOST}. {use}")
