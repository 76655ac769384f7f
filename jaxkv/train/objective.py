"""The loss of a decoder on documents, and what it gets right, in one forward pass.

loss = sum_t weight_t (-log p(token_t | tokens before t)) / sum_t weight_t
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxkv.models.decoder import Decoder
from jaxkv.train.documents import segments
from jaxkv.train.forward import forward, logits_table
from jaxkv.train.recipe import FAMILIES
from pallas_kernels.sharded import over_mesh

def weighted_loss(
    model: Decoder, document: dict[str, Array], dtype: DTypeLike
) -> tuple[Float[Array, ""], dict[str, Float[Array, " 2"]]]:
    """The sum of weighted losses over `jaxkv.train.documents.documents`, and counts.

    The counts are pairs (how many are right, of how many), by greedy prediction under
    the true words so far: `words`, of the words of answers, `answers`, whole answers,
    and whole answers of each family by its name. A whole answer is right exactly when
    greedy decoding would give it.
    """
    hidden_BTD = forward(model, document["tokens"], document["position"], dtype)
    predict = jax.checkpoint(partial(_predict, logits_table(model, dtype)))
    # The last place predicts nothing; its target is <bos>, which weighs 0. Keeping it
    # keeps the length a multiple of the attention kernel's tiles.
    target_BT, weight_BT, answer_BT, family_BT = (
        jnp.roll(document[name], -1, axis=1)
        for name in ("tokens", "weight", "answer", "family")
    )
    nll_BT, right_BT = predict(hidden_BTD, target_BT)
    arrays = {"right": right_BT, "answer": answer_BT, "family": family_BT}
    kinds = dict.fromkeys(arrays, "B")
    right_BS, family_BS = over_mesh(lambda a: _whole(**a), arrays, kinds, ("B", "B"))
    counts = {
        "words": _pair(right_BT, answer_BT > 0),
        "answers": _pair(right_BS, family_BS > 0),
    }
    for number, name in enumerate(FAMILIES, start=1):
        counts[name] = _pair(right_BS, family_BS == number)
    return (nll_BT * weight_BT).sum(), counts


def _predict(table_VD, hidden_BTD, target_BT):
    """(-log p of the target, whether it is the likeliest word), in fp32."""
    logits_BTV = jnp.einsum("BTD,VD->BTV", hidden_BTD, table_VD).astype(jnp.float32)
    word_V = jnp.arange(table_VD.shape[0])
    # A sum over one word, not an index: the vocabulary may be split over devices.
    at_BTV = word_V[None, None] == target_BT[..., None]
    of_target_BT = jnp.where(at_BTV, logits_BTV, 0.0).sum(axis=-1)
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - of_target_BT
    return nll_BT, jnp.argmax(logits_BTV, axis=-1) == target_BT


def _pair(right, asked):
    return jnp.stack([(right & asked).sum(), asked.sum()]).astype(jnp.float32)


def _whole(right, answer, family):
    """(whether an answer has no wrong word, its family or 0), by its number."""
    count = segments(answer.shape[1]) + 1

    def row(right_T, answer_T, family_T):
        none_S = jnp.zeros(count, jnp.int32)
        wrong_S = none_S.at[answer_T].add((~right_T).astype(jnp.int32))
        return wrong_S == 0, none_S.at[answer_T].max(family_T)

    return jax.vmap(row)(right, answer, family)
