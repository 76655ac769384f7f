"""Programs lowered for CUDA, on a machine that need not have it."""

from functools import partial

import jax

from pallas_kernels.call import Call
from pallas_kernels.dispatch import compile_for

KERNEL = "custom_call @mosaic_gpu"
UNCHECKED = [  # jax.export does not promise that these calls stay as they are
    jax.export.DisabledSafetyCheck.custom_call(name)
    for name in ("mosaic_gpu", "mosaic_gpu_v2")
]


def lowered(call: Call) -> str:
    """The module of a call that is meant for Hopper."""
    jitted = jax.jit(partial(call.function, **call.options))
    export = jax.export.export(jitted, platforms=["cuda"], disabled_checks=UNCHECKED)
    with compile_for("sm90"):
        return export(**call.arrays).mlir_module()
