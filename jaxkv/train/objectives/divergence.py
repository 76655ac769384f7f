"""Kullback-Leibler divergence from the teacher's next-token distribution, in nats.

    value = tau^2 mean_t sum_v p_tv (log p_tv - log q_tv)

p is the teacher's softmax at temperature tau, q the student's (Hinton et al. 2015,
arXiv 1503.02531). With `top`, p is the teacher's on its likeliest words alone, made to
sum to 1; words as likely as the last of them count too.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkv.train.objectives.base import Gave, Imitation, Value
from jaxkv.train.objectives.vocabulary import OverVocabulary, by_tokens, logits


@dataclass(frozen=True)
class Divergence(OverVocabulary, Imitation):
    """Forward KL, of all words or of the teacher's `top` ones.

    Raises:
      ValueError: the temperature is not above 0, or top below 1.
    """

    temperature: float = 1.0
    top: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or (self.top is not None and self.top < 1):
            raise ValueError(
                f"temperature={self.temperature} and top={self.top}; give a "
                "temperature above 0, and 1 word at least or None."
            )

    def __call__(self, gave: Gave) -> Value:
        assert gave.teacher is not None
        ours, theirs = gave.student, jax.lax.stop_gradient(gave.teacher)
        vocabulary = ours.table.shape[0]
        divergence_BT = by_tokens(
            partial(_divergence, temperature=self.temperature, top=self.top),
            (ours.table, theirs.table),
            (ours.hidden, theirs.hidden),
            vocabulary,
            self.logits_bytes,
        )
        return Value((divergence_BT * gave.weight).sum() * self.temperature**2)


def _divergence(tables, tokens, temperature, top) -> Float[Array, "B T"]:
    q_BTV, p_BTV = (
        logits(*pair) / temperature for pair in zip(tables, tokens, strict=True)
    )
    if top is not None and top < p_BTV.shape[-1]:
        last_BT1 = jax.lax.top_k(p_BTV, top)[0][..., -1:]
        p_BTV = jnp.where(p_BTV >= last_BT1, p_BTV, -jnp.inf)
    log_p_BTV = jax.nn.log_softmax(p_BTV, axis=-1)
    log_q_BTV = jax.nn.log_softmax(q_BTV, axis=-1)
    p_BTV = jnp.exp(log_p_BTV)
    apart_BTV = jnp.where(p_BTV > 0, p_BTV * (log_p_BTV - log_q_BTV), 0.0)
    return apart_BTV.sum(axis=-1)
