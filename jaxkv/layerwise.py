"""Whole prompts through a model, one program a layer: what those programs share."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxkv.models.decoder import Decoder

MLP_TOKENS = 8192  # tokens of a prompt whose inner MLP activations exist at one time


def spread(model: Decoder, token_ids: np.ndarray) -> Int[Array, "B S"]:
    """Rows over the data axis of the mesh that the model lies on, if they divide by it.

    What comes of them follows: each chip holds the pages of its own rows and heads.
    """
    lies = model.table[...].sharding
    if not isinstance(lies, NamedSharding):
        return jnp.asarray(token_ids)
    divides = len(token_ids) % lies.mesh.shape.get("data", 1) == 0
    rows = "data" if "data" in lies.mesh.shape and divides else None
    return jax.device_put(token_ids, NamedSharding(lies.mesh, PartitionSpec(rows)))


def on_mesh(model: Decoder) -> AbstractContextManager[Any]:
    """The mesh that the model lies on, as the ambient one, which kernels look at."""
    lies = model.table[...].sharding
    mesh = lies.mesh if isinstance(lies, NamedSharding) else None
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else nullcontext()


@jax.jit
def embed(model: Decoder, token_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return model.embed(token_ids)


def in_blocks(f, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """f over the tokens, in blocks of at most MLP_TOKENS."""
    B, S, D = x.shape
    blocks = max(1, B * S // MLP_TOKENS)
    if blocks == 1 or S % blocks:
        return f(x)
    x = x.reshape(B, blocks, S // blocks, D).swapaxes(0, 1)
    return jax.lax.map(f, x).swapaxes(0, 1).reshape(B, S, D)
