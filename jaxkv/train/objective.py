"""The loss of a decoder on documents, and what it gets right, in one forward pass.

loss = sum_t weight_t (-log p(token_t | tokens before t)) / sum_t weight_t
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkv.models.decoder import Decoder
from jaxkv.train.documents import segments
from jaxkv.train.recipe import FAMILIES

Params = dict[str, Array]


def take_apart(model: Decoder) -> tuple[Params, Callable[[Params], Decoder]]:
    """The parameters by name, and the function that makes a model of such."""
    graph, state = nnx.split(model)
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves
    ]

    def rebuild(params: Params) -> Decoder:
        return nnx.merge(graph, tree.unflatten([params[name] for name in names]))

    return dict(zip(names, (leaf for _, leaf in leaves), strict=True)), rebuild


def weighted_loss(
    model: Decoder, document: dict[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, " 2"]]]:
    """The sum of weighted losses over `jaxkv.train.documents.documents`, and counts.

    The counts are pairs (how many are right, of how many), by greedy prediction under
    the true words so far: `words`, of the words of answers, `answers`, whole answers,
    and whole answers of each family by its name. A whole answer is right exactly when
    greedy decoding would give it.
    """
    hidden_BTD = model.hidden(document["tokens"], document["position"])
    predict = jax.checkpoint(partial(_predict, model))
    # The last place predicts nothing; its target is <bos>, which weighs 0. Keeping it
    # keeps the length a multiple of the attention kernel's tiles.
    target_BT, weight_BT, answer_BT, family_BT = (
        jnp.roll(document[name], -1, axis=1)
        for name in ("tokens", "weight", "answer", "family")
    )
    nll_BT, right_BT = predict(hidden_BTD, target_BT)
    right_BS, family_BS = _whole(right_BT, answer_BT, family_BT)
    counts = {
        "words": _pair(right_BT, answer_BT > 0),
        "answers": _pair(right_BS, family_BS > 0),
    }
    for number, name in enumerate(FAMILIES, start=1):
        counts[name] = _pair(right_BS, family_BS == number)
    return (nll_BT * weight_BT).sum(), counts


def _predict(model, hidden_BTD, target_BT):
    """(-log p of the target, whether it is the likeliest word), in fp32."""
    logits_BTV = model.logits(hidden_BTD).astype(jnp.float32)
    target_BTX = jnp.take_along_axis(logits_BTV, target_BT[..., None], axis=-1)
    nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_BTX[..., 0]
    return nll_BT, jnp.argmax(logits_BTV, axis=-1) == target_BT


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
