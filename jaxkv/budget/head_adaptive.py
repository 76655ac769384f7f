"""One budget for a group of heads, dealt by score: Ada-KV (arXiv 2407.11550)."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.best import best
from jaxkv.parts import Budget


@dataclass(frozen=True)
class HeadAdaptive(Budget):
    """R heads share R * b slots, b = slots - protected, by where the best scores stand.

        n_h = how many of the best R * b candidates of all heads are head h's
        c_h = (1 - floor) n_h + floor b, rounded to sum to R * b, + protected

    The official rule: a floor of 0.2 keeps flat heads alive. Rounding gives the largest
    remainders one slot more (the official code rounds each head alone, and its total
    drifts). Ties of scores go to the lower head, then the lower position. A head never
    gets more slots than it has candidates; what it leaves of its b goes to the others,
    by the room that they have.

    over: "layer", the R heads of a layer's group share; or "model", those of all
    layers do, in one pool.
    """

    floor: float = 0.2
    over: str = "layer"

    def __post_init__(self) -> None:
        _check_floor(self.floor)
        if self.over not in ("layer", "model"):
            raise ValueError(f"over={self.over!r} is neither layer nor model.")

    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, " B #J #R S"],
        candidate: Bool[Array, " B #J #R S"],
        slots: Int[Array, "B J R"],
    ) -> Int[Array, "B J R"]:
        fixed = protected.sum(axis=-1)
        most_BJR = jnp.broadcast_to(candidate.sum(axis=-1), slots.shape)
        asked_BJR = jnp.maximum(slots - fixed, 0)
        total_BJ = jnp.minimum(asked_BJR.sum(axis=-1), most_BJR.sum(axis=-1))
        masked = jnp.where(candidate, scores, -jnp.inf)
        count_BJR = best_count(masked, total_BJ)
        base_BJR = jnp.minimum(asked_BJR, most_BJR)
        base = base_BJR.astype(jnp.float32)
        share = (1 - self.floor) * count_BJR.astype(jnp.float32) + self.floor * base
        left = self.floor * (total_BJ - base_BJR.sum(axis=-1)).astype(jnp.float32)
        room = most_BJR.astype(jnp.float32) - share
        part = left / jnp.maximum(room.sum(axis=-1), 1.0)
        return round_to_total(share + part[..., None] * room, total_BJ) + fixed

    @property
    def model_wide(self) -> bool:
        return self.over == "model"

    def most(self, slots: int, length: int) -> int:
        return length


@dataclass(frozen=True)
class SafeguardedHeads(Budget):
    """The best R * slots tokens of all heads stay, after a safeguard for each head.

    kvpress's form of Ada-KV: int(slots * floor) best tokens of each head, one at least,
    are safe; then the lowest scores over all heads of the group go. Protected tokens
    rank above all others.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, " B #J #R S"],
        candidate: Bool[Array, " B #J #R S"],
        slots: Int[Array, "B J R"],
    ) -> Int[Array, "B J R"]:
        first = jnp.where(protected, jnp.inf, scores)
        known = protected | candidate
        first = jnp.where(known, first, -jnp.inf)
        safe_BJR = (slots.astype(jnp.float32) * self.floor).astype(jnp.int32)
        safe_BJR = jnp.maximum(safe_BJR, 1)
        first = jnp.where(best(first, safe_BJR), jnp.inf, first)
        most = jnp.broadcast_to(known.sum(axis=-1), slots.shape).sum(axis=-1)
        total = jnp.minimum(slots.sum(axis=-1), most)
        return best_count(jnp.where(known, first, -jnp.inf), total)

    def most(self, slots: int, length: int) -> int:
        return length


def best_count(
    scores: Float[Array, "B J R S"],
    total: Int[Array, "B J"],
) -> Int[Array, "B J R"]:
    """How many of each group's `total` best scores belong to each head."""
    B, J, R, S = scores.shape
    chosen = best(scores.reshape(B, J, R * S), total)
    return chosen.reshape(B, J, R, S).sum(axis=-1)


def round_to_total(
    share: Float[Array, "B J R"],
    total: Int[Array, "B J"],
) -> Int[Array, "B J R"]:
    """Whole numbers next to `share` that sum to `total`, largest remainders first.

    Remainders count in thousandths, so that equal ones go to the lower head however
    the program rounds.
    """
    down = jnp.floor(share + 1e-4)
    left = total - down.sum(axis=-1).astype(total.dtype)
    rest = jnp.round((share - down) * 1000)
    order = jnp.argsort(rest, axis=-1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=-1)
    return down.astype(jnp.int32) + (rank < left[..., None]).astype(jnp.int32)


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} is not a fraction from 0 to 1.")
