"""FLOPs of a traced program's matrix products, over all devices.

2 m n k a product; a loop's body as often as it turns, what is computed again counted
again, and a kernel's body once for each step of its grid. Of a causal attention kernel
those are the blocks on the diagonal and below it.
"""

from math import prod
from typing import Any

CAUSAL = "splash"  # what the name of an attention kernel that skips blocks begins with


def product_flops(jaxpr: Any) -> float:
    """Of a jaxpr (`jax.jit(f).trace(...).jaxpr`), and of all that it calls."""
    return _flops(jaxpr, within_kernels=False, kernels_only=False)


def kernel_flops(jaxpr: Any) -> float:
    """The part of them that Pallas kernels do."""
    return _flops(jaxpr, within_kernels=False, kernels_only=True)


def _flops(jaxpr: Any, within_kernels: bool, kernels_only: bool) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    each = (_equation(e, within_kernels, kernels_only) for e in jaxpr.eqns)
    return sum(each, start=0.0)


def _equation(equation: Any, within_kernels: bool, kernels_only: bool) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        if kernels_only and not within_kernels:
            return 0.0
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        return 2.0 * prod(out.shape) * prod(left.shape[i] for i in contracted)
    if name == "pallas_call":
        grid = params["grid_mapping"].grid
        body = _flops(params["jaxpr"], True, kernels_only)
        return body * prod(grid) * _share(params, grid)
    inner = [
        part
        for value in params.values()
        for part in (value if isinstance(value, (tuple, list)) else (value,))
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    ]
    found = [_flops(part, within_kernels, kernels_only) for part in inner]
    if name == "cond":  # one branch of them runs
        return max(found)
    times = {"scan": params.get("length"), "shard_map": _devices(params)}.get(name, 1)
    return times * sum(found, start=0.0)


def _devices(params: dict[str, Any]) -> int:
    return params["mesh"].size if "mesh" in params else 1


def _share(params: dict[str, Any], grid: tuple[int, ...]) -> float:
    """Of the grid's last two steps, the share on or below the diagonal."""
    said = str(params.get("name") or params.get("name_and_src_info", ""))
    if not said.startswith(CAUSAL):
        return 1.0
    return (grid[-1] + 1) / (2 * grid[-1])
