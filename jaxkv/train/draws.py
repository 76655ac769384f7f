"""Choices made from uniform numbers in [0, 1), for arrays of segments at once."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def between(share: Float[Array, ""], bounds: tuple[float, float]) -> Float[Array, ""]:
    """The place in [low, high) at `share` of the way."""
    return bounds[0] + (bounds[1] - bounds[0]) * share


def log_between(
    share: Float[Array, ""], low: int | Int[Array, ""], high: int
) -> Int[Array, ""]:
    """An integer in [low, high], uniform in its logarithm."""
    low = jnp.asarray(low, jnp.float32)
    drawn = jnp.exp(share * jnp.log((high + 1.0) / low)) * low
    return jnp.clip(drawn.astype(jnp.int32), low.astype(jnp.int32), high)


def below(
    share_S: Float[Array, " S"], bound: int | Int[Array, " S"] | Int[Array, ""]
) -> Int[Array, " S"]:
    """An integer in [0, bound) each; 0 where bound is 0 or less."""
    bound = jnp.asarray(bound, jnp.int32)
    drawn_S = (share_S * bound.astype(jnp.float32)).astype(jnp.int32)
    return drawn_S.clip(0, jnp.maximum(bound - 1, 0))


def one_of(
    share_S: Float[Array, " S"], weights: Float[Array, " C"]
) -> Int[Array, " S"]:
    """The number of a class each, as likely as its weight says."""
    edge_C = jnp.cumsum(weights) / weights.sum()
    number_S = (share_S[:, None] >= edge_C[None, :]).sum(axis=1)
    return number_S.clip(0, weights.size - 1).astype(jnp.int32)


def pick(
    share_S: Float[Array, " S"], chosen_X: Bool[Array, " X"], by_S: Int[Array, " S"]
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """(one of the chosen things at places before `by`, how many are), each as likely.

    Where nothing is, the last place.
    """
    count_S = _before(chosen_X, by_S)
    return _number(below(share_S, count_S), chosen_X), count_S


def pick_two(
    share_S: Float[Array, " S"],
    other_S: Float[Array, " S"],
    chosen_X: Bool[Array, " X"],
    by_S: Int[Array, " S"],
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """(one, another): as `pick`, and a different thing if there are two."""
    count_S = _before(chosen_X, by_S)
    at_S = below(share_S, count_S)
    step_S = 1 + below(other_S, count_S - 1)
    other_S = (at_S + step_S) % count_S.clip(1)
    return _number(at_S, chosen_X), _number(other_S, chosen_X)


def pick_ready(
    share_S: Float[Array, " S"], ready_X: Int[Array, " X"], by_S: Int[Array, " S"]
) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """(one of the things with `ready` below `by`, how many are), each as likely."""
    order_X = jnp.argsort(ready_X)
    at_S, count_S = pick(share_S, jnp.ones(ready_X.size, bool), _below(ready_X, by_S))
    return order_X[at_S], count_S


def _below(ready_X: Int[Array, " X"], by_S: Int[Array, " S"]) -> Int[Array, " S"]:
    """How many of X are below each of S."""
    return (ready_X[None, :] < by_S[:, None]).sum(axis=1).astype(jnp.int32)


def _before(chosen_X: Bool[Array, " X"], by_S: Int[Array, " S"]) -> Int[Array, " S"]:
    """How many of the first `by` are chosen."""
    number_X = jnp.cumsum(chosen_X.astype(jnp.int32))
    return jnp.concatenate([jnp.zeros(1, jnp.int32), number_X])[by_S]


def _number(at_S: Int[Array, " S"], chosen_X: Bool[Array, " X"]) -> Int[Array, " S"]:
    """The place of the chosen thing that so many chosen things precede."""
    number_X = jnp.cumsum(chosen_X.astype(jnp.int32))
    return _below(number_X, at_S + 1).clip(0, chosen_X.size - 1)
