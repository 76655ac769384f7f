"""Whole prompts through a model, one program a layer: what those programs share."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jaxkv.mesh import ROWS, lay
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from pallas_kernels.sharded import dividing

F = TypeVar("F", bound=Callable[..., Any])
MLP_TOKENS = 8192  # tokens of a prompt whose inner MLP activations exist at one time


def spread(model: Decoder, token_ids: np.ndarray) -> Int[Array, "B S"]:
    """Rows over the mesh that the model lies on, along the axes that divide them.

    What comes of them follows: each chip holds the pages of its own rows and heads.
    """
    mesh = mesh_of(model)
    if mesh is None:
        return jnp.asarray(token_ids)
    spec = _rows(mesh, len(token_ids))
    return jax.device_put(token_ids, NamedSharding(mesh, spec))


def mesh_of(model: Decoder) -> Mesh | None:
    """The mesh that the model lies on; None where it lies on one device.

    Raises ValueError, one sentence, for a mesh whose axes are not Auto, or whose
    devices are several processes'.
    """
    lies = model.table[...].sharding
    mesh = lies.mesh if isinstance(lies, NamedSharding) else None
    if not isinstance(mesh, Mesh):
        return None
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "The model lies on a mesh of Explicit axes, on which no cache is made; "
            "load it with a mesh of Auto axes."
        )
    if mesh.is_multi_process:
        raise ValueError(
            "The model lies on devices of several processes, and caches are made in "
            "one; load it with a mesh of one process's devices."
        )
    return mesh


def on_mesh(model: Decoder) -> AbstractContextManager[Any]:
    """The mesh that the model lies on, as the ambient one, which kernels look at."""
    mesh = mesh_of(model)
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def runs_on_mesh(f: F) -> F:
    """f(model, ...), with the mesh that the model lies on as the ambient one."""

    @wraps(f)
    def run(model: Decoder, *arguments: Any, **named: Any) -> Any:
        with on_mesh(model):
            return f(model, *arguments, **named)

    return run  # pyrefly: ignore[bad-return] - it takes what f takes


def head_groups(model: Decoder) -> int:
    """J: how many groups of kv heads the mesh has that the model lies on."""
    mesh = mesh_of(model)
    return 1 if mesh is None else groups_on(mesh, model.config)


def groups_on(mesh: Mesh, config: DecoderConfig) -> int:
    """J on such a mesh: its tensor axis.

    One where a layer caches one row for all heads: then every device of the axis has
    the rows, and reads them for its own query heads.
    """
    if not all(map(config.by_head, range(config.layers))):
        return 1
    return mesh.shape.get("tensor", 1)


def over_rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x with its rows over the ambient mesh, along the axes that divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    return lay(x, _rows(mesh, len(x)))


def _rows(mesh: Any, B: int) -> PartitionSpec:
    return PartitionSpec(dividing(mesh, ROWS, [B]) or None)


@jax.jit
def embed(model: Decoder, token_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return over_rows(model.embed(token_ids))


def in_blocks(f, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """f over the tokens, in blocks of at most MLP_TOKENS."""
    B, S, D = x.shape
    blocks = max(1, B * S // MLP_TOKENS)
    if blocks == 1 or S % blocks:
        return f(x)
    x = x.reshape(B, blocks, S // blocks, D).swapaxes(0, 1)
    return jax.lax.map(f, x).swapaxes(0, 1).reshape(B, S, D)
