"""A model as an Orbax checkpoint: its parameters by path, in one flat dict.

The folder holds `parameters`, the checkpoint, and beside it config.json,
generation_config.json, jaxkv.json and tokenizer.json, as `jaxkv.models.folder` writes
them. `jaxkv.load` reads it, and so do a few lines without jaxkv, onto any devices:

    from orbax.checkpoint import v1 as ocp

    saved = ocp.metadata("out/parameters").metadata  # {"layers.0.mlp.down": shape, ...}
    lies = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # or one for each
    parameters = ocp.load("out/parameters", {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)
        for path, x in saved.items()
    })

With np.empty(x.shape, x.dtype) in place of the shape they are numpy's. How each
parameter is computed with, the modules of jaxkv/models and jaxkv/attention say.
"""

import os
from pathlib import Path

from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxkv.full_disk import reason
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import descriptions, saved_dtype, write_descriptions
from jaxkv.models.new_folder import new_folder, refuse_to_overwrite
from jaxkv.models.restore import CHECKPOINT
from jaxkv.params import take_apart


def write_orbax(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
) -> list[str]:
    """Writes the folder; there is nothing to say of it.

    Parameters are written from where they lie, whatever the mesh.
    """
    from orbax.checkpoint import v1 as ocp  # slow to import

    refuse_to_overwrite(Path(out))
    dtype = saved_dtype(model, dtype)
    described = descriptions(model.config, tokenizer, dtype)
    parameters = {path: x.astype(dtype) for path, x in take_apart(model)[0].items()}
    with new_folder(out) as beside:
        try:
            ocp.save(beside / CHECKPOINT, parameters)
        except Exception as error:  # a full disk has no type of its own there
            raise OSError(reason(error)) from error
        write_descriptions(beside, described, tokenizer)
    return []
