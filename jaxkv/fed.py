"""Scores from extra tokens that run against the full cache and are kept nowhere."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkv.feeds import chunks
from jaxkv.layerwise import embed, in_blocks, spread
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder
from jaxkv.parts import Score
from jaxkv.prompts import Prompts
from jaxkv.rules import gathered
from jaxkv.seen import Fed, Seen


def fed_scores(
    model: Decoder,
    prompts: Prompts,
    whole: Sequence[Seen],
    methods: Sequence[Method],
    rerun: int,
    future: Prompts | None,
) -> dict[Score, list[Array]]:
    """Scores of every layer, [B, K, S] each, that need tokens fed to the full cache.

    Each run goes through the layers once, for all scores that ask for it; over several
    runs a token's score is the highest.
    """
    found: dict[Score, list[Array]] = {}
    feeds = dict.fromkeys(m.score.feed for m in methods if m.score.feed is not None)
    stored = prompts.lengths - rerun
    for feed in feeds:
        scores = tuple(dict.fromkeys(m.score for m in methods if m.score.feed == feed))
        runs = chunks(feed, prompts, stored, model.config.repeat_tokens, future)
        best: list[tuple[Array, ...]] = []
        for run in runs:
            x = embed(model, spread(model, run.token_ids))
            for i, layer in enumerate(model.layers):
                x, made = _feed_layer(
                    layer,
                    x,
                    whole[i],
                    jnp.asarray(run.position),
                    jnp.int32(run.start),
                    scores=scores,
                    last=i == len(model.layers) - 1,
                )
                if run is runs[0]:
                    best.append(made)
                else:
                    best[i] = tuple(map(jnp.maximum, best[i], made))
        for n, score in enumerate(scores):
            found[score] = [layer[n] for layer in best]
    return found


@partial(jax.jit, static_argnames=("scores", "last"), donate_argnames=("x",))
def _feed_layer(layer, x, seen, position, start, *, scores, last):
    """One layer over fed tokens, against the prompt's keys and values and their own."""
    layer = gathered(layer, "layers.*", x)
    attention = layer.attention
    normed, at = layer.attention_norm(x), jnp.maximum(position, 0)
    q, k, v = attention.entries(normed, at, seen.trail)
    fed = Fed(attention.asked(q), k, position, start)
    if last:  # nothing reads the hidden states after it
        return x, _scored(seen, fed, scores)
    prompt = jnp.where(seen.stored, seen.position, -1)
    heads, lse = attention.attend_entries(
        q,
        jnp.concatenate([seen.k, k], axis=1),
        None if v is None else jnp.concatenate([seen.v, v], axis=1),
        position,
        jnp.concatenate([prompt, position], axis=1)[:, None],
    )
    found = _scored(seen, replace(fed, lse=lse), scores)
    x = x + attention.output(heads)
    x = x + in_blocks(lambda h: layer.mlp(layer.mlp_norm(h)), x)
    return x, found


def _scored(seen: Seen, fed: Fed, scores: tuple[Score, ...]) -> tuple[Array, ...]:
    looked = replace(seen, fed=fed)
    return tuple(score(looked) for score in scores)
