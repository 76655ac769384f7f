"""A kernel on each device of a mesh, on its own part: XLA cannot split a kernel."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = {"B": ("data", "fsdp"), "J": ("tensor",), "N": ("tensor",)}  # they lie along


def over_mesh(
    f: Callable[..., Any],
    arrays: Mapping[str, Any],
    kinds: Mapping[str, str],
    results: Any = "BJ",
) -> Any:
    """f(arrays), each device on its own sequences and head groups.

    kinds: by name, a letter for each of an array's first axes, "BJ" or "B" or "B-J";
    one without a letter all devices have. results: the same of what f gives, as a
    prefix of it. The mesh is the ambient one (`jax.set_mesh`): B is split over its axes
    `data` and `fsdp`, J over `tensor`, as far as it has them and they divide, and N,
    the query heads of a row, over `tensor` where J is not; without a mesh of several
    devices f runs as it is.
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

    axes_of: dict[str, tuple[str, ...]] = {}
    for letter, axes in AXES.items():
        taken = sum(axes_of.values(), ())
        own = tuple(axis for axis in axes if axis not in taken)
        axes_of[letter] = dividing(mesh, own, sizes(letter))

    def spec(kind: str) -> PartitionSpec:
        return PartitionSpec(*[axes_of.get(letter) or None for letter in kind])

    specs = {name: spec(kinds[name]) for name in arrays}
    if AxisType.Explicit in mesh.axis_types:  # shard_map does not lay them out itself
        arrays = {
            name: jax.tree.map(lambda x, s=specs[name]: jax.reshard(x, s), tree)
            for name, tree in arrays.items()
        }
    # check_vma: a kernel's results do not say over which axes they differ.
    return jax.shard_map(
        f,
        in_specs=(specs,),
        out_specs=jax.tree.map(spec, results),
        check_vma=False,
    )(arrays)


def dividing(mesh: Any, axes: tuple[str, ...], sizes: list[int]) -> tuple[str, ...]:
    """The axes from the first on that the mesh has and whose product divides sizes."""
    taken, product = [], 1
    for axis in axes:
        product *= mesh.shape.get(axis, 1)
        if axis in mesh.shape and not any(size % product for size in sizes):
            taken.append(axis)
    return tuple(taken)
