"""Which implementation of an op runs: chosen by the platform that it is lowered for.

XLA runs everywhere. A Pallas kernel is offered where this process can run it, or where
`compile_for` names its target; `jax.lax.platform_dependent` then chooses inside jit.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from pallas_kernels import versions

TARGETS = ("cpu", "gpu", "sm90", "tpu", "any")
_named: Any = jax.make_user_context(None)  # jit's caches know it: each has its programs


@contextmanager
def compile_for(target: str) -> Iterator[None]:
    """What is traced inside is meant for `target`, whatever this machine has.

    cpu, tpu, gpu (any GPU, through XLA alone), sm90 (Hopper), or any: every platform,
    by one program that XLA alone makes.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is not one of {', '.join(TARGETS)}.")
    with _named(target):
        yield


def target() -> str:
    """What is traced now is meant for this one of TARGETS."""
    named = _named.value
    if named is not None:
        return named
    platform = jax.default_backend()
    if platform == "gpu" and versions.MOSAIC_GPU and _hopper():
        return "sm90"
    return platform


def platform() -> str:
    """What is traced now is meant for cpu, gpu, tpu or any."""
    now = target()
    return "gpu" if now == "sm90" else now


def by_platform(
    xla: Callable[..., Any],
    *,
    sm90: Callable[..., Any] | None = None,
    tpu: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """One function of arrays: `sm90` or `tpu` where they are given and meant, or `xla`.

    On a machine with an accelerator what is lowered for its CPU still goes through XLA.
    """
    now = target()
    if now == "sm90" and sm90 is not None:
        kernels = {"cuda": sm90}
    elif now == "tpu" and tpu is not None:
        kernels = {"tpu": tpu}
    else:
        return xla
    return lambda *arrays: jax.lax.platform_dependent(*arrays, default=xla, **kernels)


def fits(meant: str, module: str, *arrays: Any) -> bool:
    """Whether `meant` is the target, and the module's `check` passes the arrays.

    Only then is the module imported: Pallas' backends are slow to import.
    """
    if target() != meant:
        return False
    try:
        importlib.import_module(module).check(*arrays)
    except ValueError:
        return False
    return True


def _hopper() -> bool:
    return getattr(jax.devices()[0], "compute_capability", "") == "9.0"
