"""Prefill: prompts through the model once, and a compressed cache for each method."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import Pages, PoolShape
from jaxkv.calibrate.store import calibration
from jaxkv.compress import compress
from jaxkv.fed import fed_scores
from jaxkv.heads import Heads
from jaxkv.keys import sequence_keys
from jaxkv.layerwise import embed, in_blocks, spread
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.parts import Score
from jaxkv.pools import pool_shapes, row_slots
from jaxkv.prompts import Prompts
from jaxkv.seen import Seen


def prefill(
    model: Decoder,
    prompts: Prompts,
    methods: tuple[Method, ...],
    *,
    headroom: int,
    groups: int = 1,
    rerun: int = 0,
    seed: int = 0,
    future: Prompts | None = None,
) -> tuple[Cache, ...]:
    """One pass over the prompts, and a compressed cache for each method.

    rerun: how many of each prompt's last tokens are not stored, because they will be
    fed to the compressed cache (they still count as queries, and in the budget).
    future: the tokens that will follow each prompt, for a method that may look at them.

    Methods that need all layers first are cut at the end, from the full keys and
    values; where there is none, one layer's exist at a time.
    """
    B, S = prompts.token_ids.shape
    K = model.config.kv_heads
    if K % groups:
        raise ValueError(f"groups={groups} does not divide the model's {K} kv heads.")
    if headroom < 1:
        raise ValueError(f"headroom={headroom}; reserve one token at least.")
    plans = tuple(
        _plan(model, m, prompts.lengths, S, rerun, headroom, groups) for m in methods
    )
    waits = any(m.after_all_layers for m in methods)
    window = max(1, *(m.score.queries for m in methods))
    token_ids = spread(model, prompts.token_ids)
    x = embed(model, token_ids)
    lengths = jnp.asarray(prompts.lengths)
    keys = sequence_keys(token_ids, lengths, seed)
    made: list[list[Pages]] = [[] for _ in methods]
    early: list[list[Array]] = [[] for _ in methods]  # scores that must wait
    whole: list[Seen] = []
    for i, layer in enumerate(model.layers):
        last = i == len(model.layers) - 1
        x, seen = _see_layer(
            layer, x, lengths, keys, jnp.int32(i), window=window, rerun=rerun, last=last
        )
        for n, (method, plan) in enumerate(zip(methods, plans, strict=True)):
            looked = replace(seen, calibration=plan.calibration(i))
            if not method.after_all_layers:
                made[n].append(_compress(looked, method, *plan.of_layer(i, method)))
            elif method.score.feed is None:
                early[n].append(_score(looked, method.score))
        if waits:
            nothing = seen.every_q[:, :0]
            whole.append(replace(seen, every_q=nothing))
    del x
    later = [m for m in methods if m.score.feed is not None]
    fed = fed_scores(model, prompts, whole, later, rerun, future)
    for n, (method, plan) in enumerate(zip(methods, plans, strict=True)):
        if not method.after_all_layers:
            continue
        scores = fed[method.score] if method.score.feed is not None else early[n]
        if method.budget.model_wide:
            made[n] = [_compress_model(whole, scores, method, *plan.of_model(method))]
        else:
            made[n] = [
                _compress(seen, method, *plan.of_layer(i, method), scores=scores[i])
                for i, seen in enumerate(whole)
            ]
    return tuple(
        Cache(tuple(pages), replace(m, keep=1.0) if m.when == "step" else None)
        for m, pages in zip(methods, made, strict=True)
    )


@dataclass(frozen=True)
class _Plan:
    """A method's pools, every row's slots, and what was calibrated for it."""

    shapes: tuple[PoolShape, ...]
    slots: np.ndarray  # [L, B, K]
    limits: np.ndarray
    calibrated: Mapping[str, Mapping[str, np.ndarray]]

    def calibration(self, layer: int) -> dict[str, dict[str, Array]]:
        return {
            kind: {name: jnp.asarray(array[layer]) for name, array in arrays.items()}
            for kind, arrays in self.calibrated.items()
        }

    def of_layer(self, layer: int, method: Method):
        """Slots, limits where every step evicts, and the pool of one layer."""
        return (
            jnp.asarray(self.slots[layer], jnp.int32),
            jnp.asarray(self.limits[layer], jnp.int32) if _evicts(method) else None,
            self.shapes[layer],
        )

    def of_model(self, method: Method):
        """The same of a pool that all layers share: rows are [J, span, rows]."""
        (shape,) = self.shapes
        slots = self.slots.swapaxes(0, 1)
        B, L, K = slots.shape
        slots = slots.reshape(B, L, shape.groups, -1).swapaxes(1, 2)
        return jnp.asarray(slots.reshape(B, L * K), jnp.int32), shape


def _evicts(method: Method) -> bool:
    return method.when == "step"


def _plan(
    model: Decoder,
    method: Method,
    lengths: np.ndarray,
    S: int,
    rerun: int,
    headroom: int,
    groups: int,
) -> _Plan:
    config = model.config
    calibrated = {kind: calibration(model, kind) for kind in method.calibrations}
    heads = Heads(config.layers, config.kv_heads, calibrated)
    return _Plan(
        pool_shapes(method, heads, S, rerun, headroom, groups),
        *row_slots(method, heads, lengths, rerun),
        calibrated,
    )


@partial(jax.jit, static_argnames=("window", "rerun", "last"), donate_argnames=("x",))
def _see_layer(
    layer: Layer,
    x: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    keys: Array,
    index: Int[Array, ""],
    *,
    window: int,
    rerun: int,
    last: bool,
) -> tuple[Float[Array, "B S D"], Seen]:
    """One layer over the whole prompt: the hidden states after it, and what it saw."""
    B, S, _ = x.shape
    position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    q, k, v = layer.attention.entries(layer.attention_norm(x), position)
    at = lengths[:, None] - window + jnp.arange(window)[None]
    seen = Seen(
        q=jnp.take_along_axis(q, jnp.maximum(at, 0)[..., None, None], axis=1),
        q_position=jnp.where(at >= 0, at, -1),
        every_q=q,
        k=k,
        v=v,
        position=position,
        valid=position < lengths[:, None],
        stored=position < lengths[:, None] - rerun,
        layer=index,
        inverse_frequencies=jnp.asarray(layer.attention.config.inverse_frequencies()),
        out=layer.attention.out[...],
        key=keys,
    )
    if last:  # nothing reads the hidden states after it
        return x, seen
    x = x + layer.attention.attend_prompt(q, k, v)
    return x + in_blocks(lambda h: layer.mlp(layer.mlp_norm(h)), x), seen


def _compress(seen, method, slots, limit, shape, scores=None) -> Pages:
    return _compress_layer(
        seen, replace(method, keep=1.0), slots, shape, scores=scores, limit=limit
    )


_compress_layer = jax.jit(compress, static_argnames=("method", "shape"))


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

    seen = replace(
        whole[0],
        k=stacked([s.k for s in whole], 2),
        v=stacked([s.v for s in whole], 2),
        out=stacked([s.out for s in whole], 0),
    )
    return compress(seen, method, slots, shape, scores=stacked(scores, 1))
