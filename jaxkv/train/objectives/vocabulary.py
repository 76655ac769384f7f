"""Logits over the vocabulary, some tokens at a time: never B x S x V in fp32."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxkv.mesh import rows_over
from jaxkv.train.objectives.base import Objective


@dataclass(frozen=True)
class OverVocabulary(Objective):
    """An objective that looks at all words.

    logits_bytes: of one fp32 array of logits on a device at most, tensor axis not
    counted; a few such exist at a time. Each part of the tokens adds to the table's
    whole gradient, which takes as long as the products of some 200 of them.

    Raises:
      ValueError: logits_bytes is below 1.
    """

    logits_bytes: int = field(default=2**29, kw_only=True)

    def __post_init__(self) -> None:
        if self.logits_bytes < 1:
            raise ValueError(
                f"logits_bytes={self.logits_bytes}; give 2**27 or more, where there is "
                "room."
            )


def by_tokens(
    f: Callable[..., PyTree[Array]],
    tables: PyTree[Float[Array, "V D"]],
    tokens: PyTree[Array],
    vocabulary: int,
    logits_bytes: int,
) -> PyTree[Array]:
    """f(tables, tokens) with f over some of the tokens at a time.

    tokens: arrays [B, T, ...], and so is what f gives. tables: what f has of all of
    them. f runs again in the backward pass. The tables' gradient is summed up in fp32.
    logits_bytes: as LOGITS_BYTES, of f's.
    """
    B, T = jax.tree.leaves(tokens)[0].shape[:2]
    count = _chunks(B, T, vocabulary, logits_bytes)
    run = jax.checkpoint(f)
    if count == 1:
        return run(tables, tokens)
    dtype = jax.tree.leaves(tables)[0].dtype
    exact = jax.tree.map(lambda table: table.astype(jnp.float32), tables)

    def chunk(some):
        return run(jax.tree.map(lambda table: table.astype(dtype), exact), some)

    split = jax.tree.map(
        lambda x: x.reshape(B, count, T // count, *x.shape[2:]).swapaxes(0, 1), tokens
    )
    found = jax.lax.map(chunk, split)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, T, *x.shape[3:]), found)


def logits(
    table: Float[Array, "V D"], hidden: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
    """In fp32; the vocabulary may be split over devices, so nothing indexes it."""
    return jnp.einsum("BTD,VD->BTV", hidden, table).astype(jnp.float32)


def _chunks(B: int, T: int, vocabulary: int, logits_bytes: int) -> int:
    """The fewest equal parts of T tokens whose logits stay below `logits_bytes`."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    rows = max(B // rows_over(mesh), 1)
    least = -(-rows * T * vocabulary * 4 // logits_bytes)
    return next(n for n in range(min(least, T), T + 1) if T % n == 0)
