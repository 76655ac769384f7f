"""A kernel on each device of a mesh, on its own part: XLA cannot split a kernel."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "tensor")  # what B and J lie along, where the mesh has it


def over_mesh(
    f: Callable[..., Any], arrays: Mapping[str, Any], kinds: Mapping[str, str]
) -> Any:
    """f(arrays), each device on its own sequences and head groups.

    kinds: by name, a letter for each of an array's first axes, "BJ" or "B" or "B-J";
    one without B and J all devices have. The mesh is the ambient one (`jax.set_mesh`),
    and B and J are split over its axes `data` and `tensor` where these divide them;
    without a mesh of several devices f runs as it is. f's results are all of kind "BJ".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.are_all_axes_manual:
        return f(arrays)
    by_group = [x for name, x in arrays.items() if kinds[name] == "BJ"]
    sizes = jax.tree.leaves(by_group)[0].shape
    both = [
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(AXES, sizes, strict=False)
    ]
    axis_of = dict(zip("BJ", both, strict=True))

    def spec(kind: str) -> PartitionSpec:
        return PartitionSpec(*[axis_of.get(letter) for letter in kind])

    split = {name: spec(kinds[name]) for name in arrays}
    # check_vma: a kernel's results do not say over which axes they differ.
    return jax.shard_map(f, in_specs=(split,), out_specs=spec("BJ"), check_vma=False)(
        arrays
    )
