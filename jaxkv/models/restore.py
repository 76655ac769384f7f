"""An Orbax checkpoint of a model's parameters by path to a Decoder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from jaxkv.models.decoder import Decoder
from jaxkv.params import take_apart
from jaxkv.rules import shardings

CHECKPOINT = "parameters"  # in a model's folder, in place of safetensors


def saved_embedding(checkpoint: Path) -> np.dtype:
    """The dtype of a checkpoint's embedding; ValueError where it has none."""
    from orbax.checkpoint import v1 as ocp  # slow to import

    saved: dict[str, Any] = ocp.metadata(checkpoint).metadata
    if "table" not in saved:
        raise ValueError(
            f"{checkpoint}: it has no parameter called table; use another checkpoint."
        )
    return np.dtype(saved["table"].dtype)


def restored(checkpoint: Path, empty: Decoder, mesh: Mesh | None) -> Decoder:
    """`empty` with what was saved, in its own dtype: on one device, or over the mesh.

    Each device reads the part that it holds. Raises ValueError, one sentence, where the
    checkpoint has not the parameters that `empty` has.
    """
    from orbax.checkpoint import v1 as ocp  # slow to import

    wanted, rebuild = take_apart(empty)
    saved: dict[str, Any] = ocp.metadata(checkpoint).metadata
    for path in {**wanted, **saved}:
        ours, theirs = (getattr(x.get(path), "shape", None) for x in (wanted, saved))
        if ours != theirs:
            raise ValueError(
                f"{checkpoint}: the parameter {path} is {theirs or 'missing'} where "
                f"config.json asks for {ours or 'none'}; check that the two belong "
                "together."
            )
    here = SingleDeviceSharding(jax.devices()[0])
    lies = dict.fromkeys(wanted, here) if mesh is None else shardings(mesh, wanted)
    placed = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies[path])
        for path, x in wanted.items()
    }
    return rebuild(ocp.load(checkpoint, placed))
