"""append_entries on Hopper through Pallas' Mosaic GPU backend, in place.

One warpgroup a row: its new keys and values pass through shared memory into the slots
of the pool, whose arrays are references that the kernel writes. XLA's scatters take
three programs for that, and three times as long.
"""

from itertools import product

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.hopper import ALIGNED, check_entries, in_copies
from pallas_kernels.layout import AnyEntry

MOST = 8  # new tokens; more are no step of a decode loop, and XLA's scatter is as good


def append_entries(
    entry: AnyEntry,
    position: Int[Array, "B J pages P"],
    k: Float[Array, "B T J R H"],
    v: Float[Array, "B T J R H"] | None,
    new_position: Int[Array, "B T"],
    page: Int[Array, "B J R T"],
    slot: Int[Array, "B J R T"],
    *,
    interpret=None,
) -> tuple[AnyEntry, Int[Array, "B J pages P"]]:
    """As `xla.append_entries`, of at most 8 tokens and 16-bit entries.

    Raises:
      ValueError: the dtype, head_dim or number of tokens is not one that this kernel
        takes.
    """
    check(entry, k)
    B, J, pages, _ = position.shape
    T, R, H = k.shape[1], *k.shape[3:]
    dtype = entry.k.dtype
    held, layout = jax.tree.flatten(entry)
    new = [x.astype(dtype) for x in jax.tree.leaves(entry.like(k, v))]
    arrays, parts = len(held), in_copies(H)

    def body(*refs):
        token_refs, refs = refs[:arrays], refs[arrays:]
        (new_position, page, slot), refs = refs[:3], refs[3:]
        pool_refs, (pool_position, *new_refs, come) = refs[:arrays], refs[arrays:]
        b, j, r = (lax.axis_index(name) for name in ("row", "group", "head"))
        for t, part in product(range(T), parts):
            for x, here in zip(token_refs, new_refs, strict=True):
                there, here = x.at[b, t, j, r, part], here.at[t, part]
                plgpu.copy_gmem_to_smem(there, here, come)
        places = [(page[b, j, r, t], slot[b, j, r, t]) for t in range(T)]
        plgpu.barrier_wait(come)
        for t, (p, s) in enumerate(places):

            @pl.when((p >= 0) & (p < pages))
            def _(t=t, p=p, s=s):
                for x, there in zip(new_refs, pool_refs, strict=True):
                    for part in parts:
                        there_part = there.at[b, j, p, s, part]
                        plgpu.copy_smem_to_gmem(x.at[t, part], there_part)
                pool_position[b, j, p, s] = new_position[b, t]

        plgpu.wait_smem_to_gmem(0)

    kernel = plgpu.kernel(
        body,
        out_type=(),
        scratch_types=[
            *[plgpu.SMEM((T, -(-H // ALIGNED) * ALIGNED), dtype)] * arrays,
            plgpu.Barrier(num_arrivals=arrays * T * len(parts)),
        ],
        grid=(B, J, R),
        grid_names=("row", "group", "head"),
        interpret=interpret,
    )
    pool = [jax.new_ref(x) for x in (*held, position)]
    kernel(*new, new_position, page, slot, *pool)
    *held, position = (jax.freeze(x) for x in pool)
    return jax.tree.unflatten(layout, held), position


def check(entry: AnyEntry, k: Array) -> None:
    """Says what this kernel cannot take, and what to use."""
    use = "Use xla.append_entries."
    check_entries(entry.k.dtype, k.shape[-1], use)
    if k.shape[1] > MOST:
        raise ValueError(f"{k.shape[1]} tokens at once are more than {MOST}. {use}")
