"""A tree's arrays by path, such as a module's parameters, and the tree again."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]  # arrays, or their shapes, by path


def take_apart(module: nnx.Module) -> tuple[Params, Callable[[Params], Any]]:
    """The parameters by path ("layers.3.mlp.down"), and what makes a module of such."""
    graph, state = nnx.split(module)
    params, again = by_path(state)
    return params, lambda params: nnx.merge(graph, again(params))


def by_path(tree: Any) -> tuple[Params, Callable[[Params], Any]]:
    """The arrays of a tree by path, in its own order, and what makes a tree of such."""
    leaves, kind = jax.tree_util.tree_flatten_with_path(tree)
    paths = [path_of(keys) for keys, _ in leaves]

    def again(params: Params) -> Any:
        return kind.unflatten([params[path] for path in paths])

    return dict(zip(paths, (leaf for _, leaf in leaves), strict=True)), again


def path_of(keys: Any) -> str:
    """The path of an array in a tree, a module's among them, from JAX's."""
    path = jax.tree_util.keystr(keys, simple=True, separator=".")
    return path.removesuffix("value").removesuffix(".")
