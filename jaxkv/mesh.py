"""The mesh that a model and its batches lie on: data, fsdp, tensor.

    data     rows; every device has all parameters
    fsdp     rows; each parameter is split too, and gathered where it is used
    tensor   kv heads, the MLP's inner width, the vocabulary

A mesh has all three, of length 1 where none is asked for. An axis `sequence`, over a
row's tokens, would stand between fsdp and tensor. Axis types are those of JAX: under
`auto` XLA decides how what lies between is split, under `explicit` it is part of every
array's type.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def make_mesh(
    text: str = "auto",
    axis_types: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh of "data=2,fsdp=4", or of "auto": all devices on fsdp.

    devices: all there are, when not given.

    Raises:
      ValueError: no such axis or type, a length that is no number above 0, or lengths
        whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if axis_types not in TYPES:
        raise ValueError(f"axis_types={axis_types!r}; give auto or explicit.")
    sizes = {"fsdp": len(devices)} if text == "auto" else axis_sizes(text)
    asked = prod(sizes.values())
    if asked != len(devices):
        product = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"mesh {text!r} asks for {asked} devices ({product}) and there are "
            f"{len(devices)}; give axes whose product is {len(devices)}, or auto."
        )
    shape = tuple(sizes.get(name, 1) for name in AXES)
    types = (TYPES[axis_types],) * len(AXES)
    return jax.make_mesh(shape, AXES, types, devices=devices)


def axis_sizes(text: str) -> dict[str, int]:
    """{"data": 2, "fsdp": 4} from "data=2,fsdp=4".

    Raises ValueError, one sentence, for anything else.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise ValueError(
                f"mesh {text!r} names the axis {name!r}; there are {', '.join(AXES)}, "
                'as in "data=2,fsdp=4", or auto.'
            )
        if name in sizes:
            raise ValueError(
                f"mesh {text!r} names the axis {name} twice; once will do."
            )
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh {text!r} gives {name} the length {size!r}; give a whole number "
                "of 1 or more."
            )
        sizes[name] = int(size)
    return sizes


def with_auto_axes(mesh: Any) -> Mesh:
    """The same devices and axes, all Auto."""
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def rows_over(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that a batch's rows are split into."""
    return prod(mesh.shape.get(axis, 1) for axis in ROWS)


def lay(x: Array, spec: PartitionSpec) -> Array:
    """x, laid out so on the ambient mesh; as it is without a mesh of several devices.

    Axes that the mesh does not have are left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.are_all_axes_manual:
        return x
    spec = present(spec, mesh)
    if AxisType.Explicit in mesh.axis_types:
        return jax.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)


def summed(x: Array) -> NamedSharding | None:
    """How x times a matrix lies whose sum goes over x's last axis, split or not.

    For `out_sharding`, which Explicit axes ask for and Auto axes refuse: None there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or AxisType.Explicit not in mesh.axis_types:
        return None
    lies: Any = jax.typeof(x).sharding
    return NamedSharding(lies.mesh, PartitionSpec(*lies.spec[:-1], None))


def present(spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """spec without the axes that the mesh does not have."""

    def kept(part: Any) -> Any:
        names = part if isinstance(part, tuple) else (part,)
        names = tuple(name for name in names if name in mesh.shape)
        return names if len(names) > 1 else names[0] if names else None

    return PartitionSpec(*map(kept, spec))
