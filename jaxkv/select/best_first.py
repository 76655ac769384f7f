"""The order in which all selections end: by turn, then by score, then by slot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def best_first(
    scores: Float[Array, "B K S"],
    protected: Bool[Array, " B #K S"],
    candidate: Bool[Array, " B #K S"],
    sure: Bool[Array, " B #K S"] | bool = False,
    most: int | None = None,
) -> Int[Array, "B K O"]:
    """Slots: the protected, the `sure` candidates, the others, what cannot be kept.

    Inside each of the four the higher score is first; ties go to the lower slot.

    most: only the first so many, found faster. The protected and the sure are then no
    more than that, the other candidates' scores finite, and what cannot be kept is in
    no order.
    """
    turn = jnp.where(candidate, jnp.where(sure, 1, 2), 3)
    turn = jnp.broadcast_to(jnp.where(protected, 0, turn), scores.shape)
    slot = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    if most is not None and most < scores.shape[2]:
        # A few are found four times as fast as all are sorted.
        last = jnp.where(turn == 3, -jnp.inf, scores)
        _, slot = jax.lax.top_k(jnp.where(turn < 2, jnp.inf, last), most)
        turn, scores = (jnp.take_along_axis(x, slot, axis=2) for x in (turn, scores))
    return jax.lax.sort((turn, -scores, slot), num_keys=2, is_stable=True)[2]
