"""Prefill: prompts through the model once, and a compressed cache for each method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import Pages, PoolShape
from jaxkv.compress import compress
from jaxkv.fed import fed_scores
from jaxkv.keys import sequence_keys
from jaxkv.layerwise import embed, in_blocks, runs_on_mesh, spread
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.parts import Score
from jaxkv.pools import Plan, planned
from jaxkv.prompts import Prompts
from jaxkv.rules import gathered
from jaxkv.seen import Seen


@runs_on_mesh
def prefill(
    model: Decoder,
    prompts: Prompts,
    methods: tuple[Method, ...],
    *,
    headroom: int,
    groups: int | None = None,
    rerun: int = 0,
    seed: int = 0,
    future: Prompts | None = None,
) -> tuple[Cache, ...]:
    """One pass over the prompts, and a compressed cache for each method.

    rerun: how many of each prompt's last tokens are not stored, because they will be
    fed to the compressed cache (they still count as queries, and in the budget).
    future: the tokens that will follow each prompt, for a method that may look at them.
    groups: head groups, as the mesh has them that the model lies on when not given.

    Methods that need all layers first are cut at the end, from the full keys and
    values; where there is none, one layer's exist at a time.
    """
    S = prompts.token_ids.shape[1]
    plans = tuple(
        planned(model, m, prompts.lengths, S, rerun, headroom, groups) for m in methods
    )
    later = [m for m in methods if m.score.feed is not None]

    def fed(whole: Sequence[Seen]) -> Mapping[Score, Sequence[Array]]:
        return fed_scores(model, prompts, whole, later, rerun, future)

    return prefill_planned(
        model,
        spread(model, prompts.token_ids),
        jnp.asarray(prompts.lengths),
        methods,
        plans,
        rerun=rerun,
        seed=seed,
        fed=fed,
    )


def prefill_planned(
    model: Decoder,
    token_ids: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    methods: tuple[Method, ...],
    plans: tuple[Plan, ...],
    *,
    rerun: int,
    seed: int,
    fed: Callable[[Sequence[Seen]], Mapping[Score, Sequence[Array]]],
) -> tuple[Cache, ...]:
    """The same of prompts that are arrays, also inside a program.

    plans: of each method. fed: from what all layers have seen, the scores of each layer
    that need tokens fed.
    """
    waits = any(m.after_all_layers for m in methods)
    asked = looks(methods)
    x = embed(model, token_ids)
    keys = sequence_keys(token_ids, lengths, seed)
    made: list[list[Pages]] = [[] for _ in methods]
    early: list[list[Array]] = [[] for _ in methods]  # scores that must wait
    whole: list[Seen] = []
    for i, layer in enumerate(model.layers):
        last = i == len(model.layers) - 1
        x, seen = see_layer(
            layer,
            x,
            lengths,
            keys,
            jnp.int32(i),
            jnp.int32(rerun),
            last=last,
            **asked,
        )
        for n, (method, plan) in enumerate(zip(methods, plans, strict=True)):
            looked = _looked_at(seen, method)
            looked = replace(looked, calibration=plan.calibration(i))
            if not method.after_all_layers:
                made[n].append(
                    compress_layer(looked, method, *plan.of_layer(i, method))
                )
            elif method.score.feed is None:
                early[n].append(_score(looked, method.score))
        if waits:
            nothing = seen.every_q[:, :0]
            whole.append(replace(seen, every_q=nothing, lse=None))
    del x
    by_feed = fed(whole)
    for n, (method, plan) in enumerate(zip(methods, plans, strict=True)):
        if not method.after_all_layers:
            continue
        scores = by_feed[method.score] if method.score.feed is not None else early[n]
        if method.budget.model_wide:
            made[n] = [_compress_model(whole, scores, method, *plan.of_model(method))]
        else:
            made[n] = [
                compress_layer(seen, method, *plan.of_layer(i, method), scores[i])
                for i, seen in enumerate(whole)
            ]
    return tuple(
        Cache(tuple(pages), m.upkeep) for m, pages in zip(methods, made, strict=True)
    )


def looks(methods: Sequence[Method]) -> dict[str, Any]:
    """What the methods look at, as `see_layer` asks for it."""
    return {
        "window": max(1, *(m.score.queries for m in methods)),
        "every": any(m.score.every_query for m in methods),
        "with_lse": any(m.score.lse for m in methods),
        "with_out": any(m.select.looks_at_out for m in methods),
    }


def _looked_at(seen: Seen, method: Method) -> Seen:
    """Without what the method does not look at: then all layers share its program."""
    return replace(
        seen,
        every_q=seen.every_q if method.score.every_query else seen.every_q[:, :0],
        lse=seen.lse if method.score.lse else None,
        out=seen.out if method.select.looks_at_out else None,
    )


@partial(
    jax.jit,
    static_argnames=("window", "every", "with_lse", "with_out", "last"),
    donate_argnames=("x",),
)
def see_layer(
    layer: Layer,
    x: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    keys: Array,
    index: Int[Array, ""],
    rerun: Int[Array, ""],
    *,
    window: int,
    every: bool,
    with_lse: bool,
    with_out: bool,
    last: bool,
) -> tuple[Float[Array, "B S D"], Seen]:
    """One layer over the whole prompt: the hidden states after it, and what it saw."""
    layer = gathered(layer, "layers.*", x)
    B, S, _ = x.shape
    attention = layer.attention
    position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    normed = layer.attention_norm(x)
    q, k, v = attention.entries(normed, position)
    last_q, q_position = last_queries(q, lengths, window)
    seen = Seen(
        q=attention.asked(last_q),
        q_position=q_position,
        every_q=attention.asked(q if every else q[:, :0]),
        k=k,
        v=v,
        position=position,
        valid=position < lengths[:, None],
        stored=position < lengths[:, None] - rerun,
        layer=index,
        inverse_frequencies=jnp.asarray(attention.inverse_frequencies),
        out=attention.of_values() if with_out else None,
        key=keys,
        scale=attention.scale,
        value_dim=attention.value_dim,
        key_part=attention.key_part,
        trail=attention.trail(normed, jnp.maximum(lengths - rerun, 0)),
    )
    if last:  # nothing reads the hidden states after it
        return x, seen
    heads, lse = attention.attend_prompt(q, k, v)
    if with_lse:
        seen = replace(seen, lse=lse)
    x = x + attention.output(heads)
    return x + in_blocks(lambda h: layer.mlp(layer.mlp_norm(h)), x), seen


def last_queries(
    q: Float[Array, "B S N H"], lengths: Int[Array, " B"], window: int
) -> tuple[Float[Array, "B W N H"], Int[Array, "B W"]]:
    """Each row's last `window` queries, and which they are; -1 where it has fewer."""
    at = lengths[:, None] - window + jnp.arange(window)[None]
    last = jnp.take_along_axis(q, jnp.maximum(at, 0)[..., None, None], axis=1)
    return last, jnp.where(at >= 0, at, -1)


def compress_layer(
    seen: Seen,
    method: Method,
    slots: Int[Array, "B K"],
    limit: Int[Array, "B K"] | None,
    shape: PoolShape,
    scores: Float[Array, "B K S"] | None = None,
) -> Pages:
    """The spine as a program; `keep`, which is in the slots, is no part of it."""
    return compress_program(
        seen, replace(method, keep=1.0), slots, shape, scores=scores, limit=limit
    )


compress_program = jax.jit(compress, static_argnames=("method", "shape"))


@partial(jax.jit, static_argnames="score")
def _score(seen: Seen, score: Score) -> Float[Array, "B K S"]:
    return score(seen)


def _compress_model(whole, scores, method, slots, shape) -> Pages:
    """All layers' heads as the rows of one pool."""
    return _compress_stacked(
        tuple(whole), tuple(scores), replace(method, keep=1.0), slots, shape
    )


@partial(jax.jit, static_argnames=("method", "shape"))
def _compress_stacked(whole, scores, method, slots, shape) -> Pages:
    def stacked(arrays, axis):
        """[.., K, ..] of every layer to [.., J * L * R, ..]."""
        x = jnp.stack(arrays, axis=axis)
        L, K = x.shape[axis : axis + 2]
        J = shape.groups
        x = x.reshape(*x.shape[: axis + 1], J, K // J, *x.shape[axis + 2 :])
        x = x.swapaxes(axis, axis + 1)
        return x.reshape(*x.shape[:axis], L * K, *x.shape[axis + 3 :])

    def if_any(arrays, axis):
        return None if arrays[0] is None else stacked(arrays, axis)

    seen = replace(
        whole[0],
        k=stacked([s.k for s in whole], 2),
        v=if_any([s.v for s in whole], 2),
        out=if_any([s.out for s in whole], 0),
        key_part=if_any([s.key_part for s in whole], 0),
        trail=if_any([s.trail for s in whole], 1),
    )
    return compress(seen, method, slots, shape, scores=stacked(scores, 1))
