"""Which axes of the mesh each parameter lies along: one table, by path.

A path is that of the attributes that lead to a parameter, as "layers.3.mlp.down"; a `*`
in a rule stands for one name. The first rule that fits holds. What an optimizer keeps
for a parameter has the parameter's path inside its own, and lies as it does. A cache's
sequences lie along data and fsdp, its head groups along tensor (`jaxkv.cache`).
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from jaxkv.mesh import lay, present
from jaxkv.params import path_of

P = PartitionSpec
GATHERED = "gathered"
RULES: Mapping[str, PartitionSpec] = {
    "table": P("fsdp", "tensor"),  # [V, D]
    "head": P("tensor", "fsdp"),  # [V, D]
    "norm.scale": P(),  # [D]
    "layers.*.attention_norm.scale": P(),
    "layers.*.mlp_norm.scale": P(),
    "layers.*.attention.qkv": P("fsdp", "tensor"),  # [D, K, G + 2, H]
    "layers.*.attention.out": P("tensor", None, None, "fsdp"),  # [K, G, H, D]
    "layers.*.attention.channels": P(None, "tensor"),  # [I, K, X, H]
    "layers.*.attention.channels_bias": P("tensor"),  # [K * X * H]
    "layers.*.attention.heads": P(None, "tensor"),  # [I, K, X, H, H]
    "layers.*.attention.heads_bias": P("tensor"),  # [K * X * H]
    "layers.*.attention.temperature": P("tensor"),  # [K]
    "layers.*.attention.q_norm.scale": P(),  # [H]
    "layers.*.attention.k_norm.scale": P(),
    "layers.*.attention.grouped.qkv": P("fsdp", "tensor"),
    "layers.*.attention.grouped.out": P("tensor", None, None, "fsdp"),
    "layers.*.attention.grouped.q_norm.scale": P(),
    "layers.*.attention.grouped.k_norm.scale": P(),
    "layers.*.attention.key_basis": P(),  # [K or 1, H, H]
    "layers.*.attention.value_basis": P(),  # [K, H, H]
    "layers.*.attention.value_mean": P(),  # [K, H]
    "layers.*.attention.query": P("fsdp", "tensor"),  # [D, N, Q]
    "layers.*.attention.query_down": P("fsdp"),  # [D, query rank]
    "layers.*.attention.query_norm.scale": P(),
    "layers.*.attention.query_up": P("fsdp", "tensor"),  # [query rank, N, Q]
    "layers.*.attention.down": P("fsdp"),  # [D, R + rope]
    "layers.*.attention.norm.scale": P(),  # [R]
    "layers.*.attention.up": P("fsdp", "tensor"),  # [R, N, nope + U]
    "layers.*.attention.heads_out": P("tensor", None, "fsdp"),  # [N, U, D]
    "layers.*.mlp.gate_up": P("fsdp", None, "tensor"),  # [D, 2, F]
    "layers.*.mlp.down": P("tensor", "fsdp"),  # [F, D]
    "add_on.gate": P(),  # [L, K]
    "add_on.key": P(),  # [L, K, H, H]
    "add_on.value": P(),
    "add_on.mean": P(),  # [L, K, H]
    "recent": P(),  # the guard's last losses
}


def axes_of(path: str) -> PartitionSpec:
    """What the first rule that fits `path` says.

    Raises:
      ValueError: no rule does.
    """
    for rule, spec in RULES.items():
        if _fits(path, rule):
            return spec
    raise ValueError(
        f"No rule says how the parameter {path} is to lie on a mesh; add one to "
        "jaxkv/rules.py."
    )


def sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """How the parameter at `path` lies on the mesh.

    Raises:
      ValueError: no rule fits the path, or an axis does not divide the parameter.
    """
    spec = present(axes_of(path), mesh)
    for i, axis in enumerate(spec):
        names = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
        size = prod(mesh.shape[name] for name in names)
        if shape[i] % size:
            raise ValueError(
                f"The mesh's axis {' x '.join(names)} of {size} does not divide "
                f"dimension {i} of {path}, which is {shape[i]} of {list(shape)}; give "
                f"a mesh whose {' x '.join(names)} divides {shape[i]}."
            )
    return NamedSharding(mesh, spec)


def shardings(mesh: Mesh, tree: PyTree) -> PyTree[NamedSharding]:
    """How each array of a tree lies: parameters by path, and what optax keeps for them.

    A dict's last key is the path; what is in no dict (an optimizer's constants) and
    single numbers are small, and lie on every device.
    """

    def one(keys: Any, x: Any) -> NamedSharding:
        if not x.ndim or not isinstance(keys[-1], jax.tree_util.DictKey):
            return NamedSharding(mesh, P())
        return sharding(mesh, keys[-1].key, x.shape)

    return jax.tree_util.tree_map_with_path(one, tree)


def for_use(part: Any, path: str, dtype: DTypeLike) -> Any:
    """A part of a model, whose path that is, as it is computed with.

    Each parameter is cast to `dtype` and gathered along fsdp; its gradient is split
    again. Under `jax.checkpoint` the gathered one is known as `GATHERED`.
    """

    def one(keys: Any, x: Array) -> Array:
        mine = ".".join(name for name in (path, path_of(keys)) if name)
        return checkpoint_name(_gathered(x.astype(dtype), axes_of(mine)), GATHERED)

    return jax.tree_util.tree_map_with_path(one, part)


def gathered(part: Any, path: str, after: Array) -> Any:
    """A part of a model, whose path that is, gathered along fsdp once `after` is there.

    So the parts of a program are gathered one after the other, where they are used, and
    in a loop each time: XLA would else be free to hold all of them at once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("fsdp", 1) == 1 or mesh.are_all_axes_manual:
        return part
    part, _ = jax.lax.optimization_barrier((part, after))

    def one(keys: Any, x: Array) -> Array:
        return _gathered(x, axes_of(f"{path}.{path_of(keys)}"))

    return jax.tree_util.tree_map_with_path(one, part)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: Array, spec: PartitionSpec) -> Array:
    return lay(x, P(*(None if axis == "fsdp" else axis for axis in spec)))


def _gathered_forward(x, spec):
    return _gathered(x, spec), None


def _gathered_backward(spec, _, gradient):
    return (lay(gradient, spec),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _fits(path: str, rule: str) -> bool:
    names, patterns = path.split("."), rule.split(".")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))
