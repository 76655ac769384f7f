"""A module's parameters by path, and the module again."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]  # arrays, or their shapes, by path


def take_apart(module: nnx.Module) -> tuple[Params, Callable[[Params], Any]]:
    """The parameters by path ("layers.3.mlp.down"), and what makes a module of such."""
    graph, state = nnx.split(module)
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    paths = [path_of(keys) for keys, _ in leaves]

    def rebuild(params: Params) -> Any:
        return nnx.merge(graph, tree.unflatten([params[path] for path in paths]))

    return dict(zip(paths, (leaf for _, leaf in leaves), strict=True)), rebuild


def path_of(keys: Any) -> str:
    """The path of an array in a module, from JAX's."""
    path = jax.tree_util.keystr(keys, simple=True, separator=".")
    return path.removesuffix("value").removesuffix(".")
