"""The sizes of a kernel that are fastest on this device, one head_dim after another."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.bench.pools import random_pool
from jaxkv.bench.timing import seconds_a_call
from pallas_kernels.dispatch import target
from pallas_kernels.tuned import table

BATCH, K, G, SLOTS, PAGE = 8, 8, 4, 3277, 64
IN_TURN, ROUNDS = 8, 40  # pools, and how often each is read
STAGES = (2, 3, 4, 5, 6, 8)
BLOCKS = (1, 2)  # of the grid, a multiprocessor


def tune_ragged_decode(progress: Callable[[int, int, str], None]) -> dict[str, dict]:
    """{head_dim: the fastest sizes} of ragged_decode for a tenth of 32768 slots kept.

    Sizes that do not fit in a block's memory are left out.

    Raises:
      ValueError: the device has no kernel with sizes to choose.
    """
    if target() != "sm90":
        raise ValueError(
            f"Only ragged_decode on Hopper has sizes to tune, and this device is "
            f"{jax.devices()[0].device_kind}."
        )
    from pallas_kernels.ragged_decode import mosaic_gpu

    cores = jax.devices()[0].core_count
    tried = list(itertools.product((64, 96, 128, 256), BLOCKS, STAGES))
    found: dict[str, dict] = {}
    for i, (H, blocks, stages) in enumerate(tried):
        sizes = mosaic_gpu.Sizes(blocks=blocks * cores, stages=stages)
        progress(i, len(tried), f"head_dim {H}")
        pools = _pools(H)
        q = jnp.ones((BATCH, 1, K, 1, G, H), jnp.bfloat16)
        decode = partial(mosaic_gpu.ragged_decode, scale=H**-0.5, sizes=sizes)
        try:
            took = seconds_a_call(partial(_step, decode), q, pools, ROUNDS)
        except ValueError as error:
            if "exceeds available shared memory" not in str(error):
                raise
            continue
        best = found.get(str(H))
        if best is None or took < best["seconds"]:
            found[str(H)] = {"seconds": took, "sizes": asdict(sizes)}
    return {H: best["sizes"] for H, best in found.items()}


def write(sizes: dict[str, dict], op: str, file: Path) -> None:
    """The committed table with this device's sizes of `op` in place of what it had."""
    kind = jax.devices()[0].device_kind
    of_kind = table().get(kind, {}) | {op: sizes}
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(table() | {kind: of_kind}, indent=2) + "\n")
    os.replace(beside, file)


def _pools(H: int) -> list[dict]:
    lengths = np.full((BATCH, K), SLOTS)
    made = [
        random_pool(lengths, PAGE, H, jnp.bfloat16, seed) for seed in range(IN_TURN)
    ]
    return [{name: x for name, x in pool.items() if name != "owner"} for pool in made]


def _step(decode, q, pool):
    """What comes out are the next queries."""
    return decode(q, **pool)[0]
