"""One budget for a group of heads, dealt by score: Ada-KV (arXiv 2407.11550)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.method import Budget


@dataclass(frozen=True)
class HeadAdaptive(Budget):
    """Heads share R * b slots, b = slots - protected, by where the best scores stand.

        n_h = how many of the best R * b candidates of all heads are head h's
        c_h = (1 - floor) n_h + floor b, rounded to sum to R * b, + protected

    The official rule: a floor of 0.2 keeps flat heads alive. Rounding gives the largest
    remainders one slot more (the official code rounds each head alone, and its total
    drifts). Ties of scores go to the lower head, then the lower position. A head never
    gets more slots than it has candidates; what it leaves goes to the others.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        _check_floor(self.floor)

    def __call__(
        self,
        scores: Float[Array, "B J R S"],
        protected: Bool[Array, "B S"],
        candidate: Bool[Array, "B S"],
        slots: Int[Array, " B"],
    ) -> Int[Array, "B J R"]:
        R = scores.shape[2]
        fixed_B = protected.sum(axis=-1)
        most_B = candidate.sum(axis=-1)
        base_B = jnp.clip(slots - fixed_B, 0, most_B)
        masked = jnp.where(candidate[:, None, None], scores, -jnp.inf)
        count_BJR = best_count(masked, (R * base_B)[:, None])
        base = base_B[:, None, None].astype(jnp.float32)
        share = (1 - self.floor) * count_BJR.astype(jnp.float32) + self.floor * base
        return round_to_total(share, R * base_B[:, None]) + fixed_B[:, None, None]

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
        protected: Bool[Array, "B S"],
        candidate: Bool[Array, "B S"],
        slots: Int[Array, " B"],
    ) -> Int[Array, "B J R"]:
        R = scores.shape[2]
        first = jnp.where(protected[:, None, None], jnp.inf, scores)
        known = (protected | candidate)[:, None, None]
        first = jnp.where(known, first, -jnp.inf)
        order = jnp.argsort(first, axis=-1, stable=True, descending=True)
        rank = jnp.argsort(order, axis=-1)
        safe_B = (slots.astype(jnp.float32) * self.floor).astype(jnp.int32)
        safe_B = jnp.maximum(safe_B, 1)
        first = jnp.where(rank < safe_B[:, None, None, None], jnp.inf, first)
        return best_count(jnp.where(known, first, -jnp.inf), (R * slots)[:, None])

    def most(self, slots: int, length: int) -> int:
        return length


def best_count(
    scores: Float[Array, "B J R S"],
    total: Int[Array, "B #J"],  # noqa: F821
) -> Int[Array, "B J R"]:
    """How many of each group's `total` best scores belong to each head."""
    B, J, R, S = scores.shape
    flat = scores.reshape(B, J, R * S)
    head = jax.lax.broadcasted_iota(jnp.int32, flat.shape, 2) // S
    _, by_rank = jax.lax.sort((-flat, head), num_keys=1, is_stable=True)
    chosen = jnp.arange(R * S)[None, None] < total[..., None]
    mine = by_rank[:, :, None] == jnp.arange(R)[None, None, :, None]
    return (mine & chosen[:, :, None]).sum(axis=-1)


def round_to_total(
    share: Float[Array, "B J R"],
    total: Int[Array, "B #J"],  # noqa: F821
) -> Int[Array, "B J R"]:
    """Whole numbers next to `share` that sum to `total`, largest remainders first."""
    down = jnp.floor(share + 1e-4)
    left = total - down.sum(axis=-1).astype(total.dtype)
    order = jnp.argsort(share - down, axis=-1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=-1)
    return down.astype(jnp.int32) + (rank < left[..., None]).astype(jnp.int32)


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} is not a fraction from 0 to 1.")
