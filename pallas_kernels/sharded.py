"""A kernel on each device of a mesh, on its own part: XLA cannot split a kernel."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXES = {"B": "data", "J": "tensor"}  # what they lie along, where the mesh has it


def over_mesh(
    f: Callable[..., Any],
    arrays: Mapping[str, Any],
    kinds: Mapping[str, str],
    results: Any = "BJ",
) -> Any:
    """f(arrays), each device on its own sequences and head groups.

    kinds: by name, a letter for each of an array's first axes, "BJ" or "B" or "B-J";
    one without B and J all devices have. results: the same of what f gives, as a prefix
    of it. The mesh is the ambient one (`jax.set_mesh`), and B and J are split over its
    axes `data` and `tensor` where these divide them; without a mesh of several devices
    f runs as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.are_all_axes_manual:
        return f(arrays)

    def sizes(letter: str) -> list[int]:
        """Of all arrays' axes that such a letter stands for."""
        return [
            x.shape[kinds[name].index(letter)]
            for name, tree in arrays.items()
            if letter in kinds[name]
            for x in jax.tree.leaves(tree)
        ]

    axis_of = {
        letter: axis
        for letter, axis in AXES.items()
        if axis in mesh.shape
        and all(size % mesh.shape[axis] == 0 for size in sizes(letter))
    }

    def spec(kind: str) -> PartitionSpec:
        return PartitionSpec(*[axis_of.get(letter) for letter in kind])

    # check_vma: a kernel's results do not say over which axes they differ.
    return jax.shard_map(
        f,
        in_specs=({name: spec(kinds[name]) for name in arrays},),
        out_specs=jax.tree.map(spec, results),
        check_vma=False,
    )(arrays)
