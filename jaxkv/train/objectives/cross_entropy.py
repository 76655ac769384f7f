"""Cross-entropy of the next token, in nats, and what greedy decoding gets right.

    value = mean_t (-log p(token_t+1 | tokens to t))

Of documents that say which words answer a question (`jaxkv.train.documents`) it counts
right words and whole answers; a whole answer is right exactly when greedy decoding
would give it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxkv.train.documents import segments
from jaxkv.train.objectives.base import Gave, Value
from jaxkv.train.objectives.vocabulary import OverVocabulary, by_tokens, logits
from jaxkv.train.recipe import FAMILIES
from pallas_kernels.sharded import over_mesh


@dataclass(frozen=True)
class CrossEntropy(OverVocabulary):
    """Of the student alone."""

    def __call__(self, gave: Gave) -> Value:
        table_VD = gave.student.table
        tokens = gave.student.hidden, gave.target
        nll_BT, right_BT = by_tokens(
            _predict, table_VD, tokens, table_VD.shape[0], self.logits_bytes
        )
        counts = _answers(gave, right_BT) if "answer" in gave.batch else {}
        return Value((nll_BT * gave.weight).sum(), counts)


def _predict(
    table_VD: Float[Array, "V D"],
    tokens: tuple[Float[Array, "B T D"], Int[Array, "B T"]],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """(-log p of the target, whether it is the likeliest word), in fp32."""
    hidden_BTD, target_BT = tokens
    logits_BTV = logits(table_VD, hidden_BTD)
    word_V = jnp.arange(logits_BTV.shape[-1])
    is_target_BTV = word_V[None, None] == target_BT[..., None]
    of_target_BT = jnp.where(is_target_BTV, logits_BTV, 0.0).sum(axis=-1)
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - of_target_BT
    return nll_BT, jnp.argmax(logits_BTV, axis=-1) == target_BT


def _answers(gave: Gave, right_BT: Bool[Array, "B T"]) -> dict[str, Array]:
    """Pairs (right, asked) of words, of whole answers, and of those of each family."""
    T = right_BT.shape[1]
    answer_BT, family_BT = (
        jnp.roll(gave.batch[name], -1, axis=1) for name in ("answer", "family")
    )
    rows = {"of": (right_BT, answer_BT, family_BT)}
    right_BS, family_BS = over_mesh(
        lambda mine: _whole(*mine["of"]), rows, {"of": "B"}, ("B", "B")
    )
    counts = {
        "words": _pair(right_BT, answer_BT > 0),
        f"exact_{T}": _pair(right_BS, family_BS > 0),
    }
    for number, name in enumerate(FAMILIES, start=1):
        counts[f"{name}_{T}"] = _pair(right_BS, family_BS == number)
    return counts


def _pair(right, asked):
    return jnp.stack([(right & asked).sum(), asked.sum()]).astype(jnp.float32)


def _whole(right_BT, answer_BT, family_BT):
    """(whether an answer has no wrong word, its family or 0), by its number."""
    count = segments(answer_BT.shape[1]) + 1

    def row(right_T, answer_T, family_T):
        none_S = jnp.zeros(count, jnp.int32)
        wrong_S = none_S.at[answer_T].add((~right_T).astype(jnp.int32))
        return wrong_S == 0, none_S.at[answer_T].max(family_T)

    return jax.vmap(row)(right_BT, answer_BT, family_BT)
