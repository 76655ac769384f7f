"""A prompt goes on: new tokens run against a cache and are compressed with it.

Layer by layer, as in prefill.py. A layer's record covers the whole prompt by position:
what each head still holds of the earlier tokens, and the new ones. So only one layer's
exists at a time, and parts look at it as they do at a first prompt's.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import Pages, trail_of
from jaxkv.cache.save import sizes, sizes_of_pools
from jaxkv.keys import sequence_keys
from jaxkv.layerwise import embed, in_blocks, runs_on_mesh, spread
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.pools import planned
from jaxkv.prefill import compress_layer, last_queries
from jaxkv.prompts import Prompts, bucket
from jaxkv.rules import gathered
from jaxkv.seen import Earlier, Seen


@runs_on_mesh
def further(
    model: Decoder,
    prompts: Prompts,
    method: Method,
    cache: Cache,
    *,
    headroom: int,
    groups: int | None = None,
    seed: int = 0,
) -> Cache:
    """The cache of each earlier prompt with its new tokens behind it, cut to budget.

    Slots are those of the whole sequence, chosen from what each head still holds and
    the new tokens; a head that holds fewer keeps all of it. The given cache stays as it
    is. Raises ValueError, one sentence, where the method's parts or the cache cannot go
    on, or the new tokens do not fit to it.
    """
    _check_method(method)
    _check_cache(cache, method, model)
    start = cache.next_position
    _check_tokens(prompts, start, model.config)
    total = start + prompts.lengths
    S = bucket(int(total.max()))
    plan = planned(model, method, total, S, 0, headroom, groups)
    token_ids = spread(model, prompts.token_ids)
    x = embed(model, token_ids)
    start, lengths = jnp.asarray(start), jnp.asarray(prompts.lengths)
    keys = sequence_keys(token_ids, lengths, seed)
    made: list[Pages] = []
    for i, (layer, pages) in enumerate(zip(model.layers, cache.layers, strict=True)):
        x, seen = _see_layer(
            layer,
            x,
            pages,
            start,
            lengths,
            keys,
            jnp.int32(i),
            size=S,
            window=max(1, method.score.queries),
            every=method.score.every_query,
            with_out=method.select.looks_at_out,
            last=i == len(model.layers) - 1,
        )
        seen = replace(seen, calibration=plan.calibration(i))
        made.append(compress_layer(seen, method, *plan.of_layer(i, method)))
    return Cache(tuple(made), method.upkeep)


@partial(
    jax.jit,
    static_argnames=("size", "window", "every", "with_out", "last"),
    donate_argnames=("x",),
)
def _see_layer(
    layer: Layer,
    x: Float[Array, "B Q D"],
    pages: Pages,
    start: Int[Array, " B"],
    lengths: Int[Array, " B"],
    keys: Array,
    index: Int[Array, ""],
    *,
    size: int,
    window: int,
    every: bool,
    with_out: bool,
    last: bool,
) -> tuple[Float[Array, "B Q D"], Seen]:
    """One layer over the new tokens: the hidden states after it, and what it saw."""
    layer = gathered(layer, "layers.*", x)
    B, Q, _ = x.shape
    offset = jnp.broadcast_to(jnp.arange(Q, dtype=jnp.int32), (B, Q))
    true_position = start[:, None] + offset
    attention = layer.attention
    normed, before = layer.attention_norm(x), trail_of(pages, 0)
    q, k, v = attention.entries(normed, true_position, before)
    q_position = jnp.where(offset < lengths[:, None], true_position, -1)
    position = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (B, size))
    token_BS = position < (start + lengths)[:, None]
    new_BS = token_BS & (position >= start[:, None])
    placed = partial(_by_position, pages, size)
    held_BKS = placed(pages.position >= 0) | new_BS[:, None]
    last_q, at = last_queries(q, lengths, window)
    seen = Seen(
        q=attention.asked(last_q),
        q_position=jnp.where(at >= 0, start[:, None] + at, -1),
        every_q=attention.asked(q if every else q[:, :0]),
        k=_with_new(placed(pages.entry.k), k, q_position),
        v=None if v is None else _with_new(placed(pages.entry.v), v, q_position),
        position=position,
        valid=token_BS,
        stored=token_BS,
        layer=index,
        inverse_frequencies=jnp.asarray(attention.inverse_frequencies),
        out=attention.of_values() if with_out else None,
        key=keys,
        scale=attention.scale,
        value_dim=attention.value_dim,
        key_part=attention.key_part,
        trail=attention.trail(normed, lengths, before),
        earlier=Earlier(
            held_BKS,
            q_position,
            {name: placed(carried) for name, carried in pages.slot_state.items()},
        ),
    )
    if last:  # nothing reads the hidden states after it
        return x, seen
    k_position = jnp.where(seen.by_head(token_BS), position[:, None], -1)
    heads, _ = attention.attend_entries(q, seen.k, seen.v, q_position, k_position)
    x = x + attention.output(heads)
    return x + in_blocks(lambda h: layer.mlp(layer.mlp_norm(h)), x), seen


def _by_position(pages: Pages, size: int, x: Array) -> Array:
    """[B, J, pages, P, ...] of one layer's slots to [B, K, size, ...], 0 elsewhere."""
    B, J, _, R, _ = pages.table.shape

    def one_pool(x, owner, position):
        row = jnp.broadcast_to(jnp.maximum(owner, 0)[:, None], position.shape)
        used = (owner >= 0)[:, None] & (position >= 0)
        at = jnp.where(used, position, size)
        zeros = jnp.zeros((R, size, *x.shape[2:]), x.dtype)
        return zeros.at[row, at].set(x, mode="drop")

    by_head = jax.vmap(jax.vmap(one_pool))(x, pages.owner, pages.position)
    return by_head.reshape(B, J * R, *by_head.shape[3:])


def _with_new(
    earlier: Float[Array, "B K S H"],
    new: Float[Array, "B Q K H"],
    position: Int[Array, "B Q"],
) -> Float[Array, "B S K H"]:
    """Entries by position: the earlier ones, and the new ones where they stand."""
    S = earlier.shape[2]
    at = jnp.where(position >= 0, position, S)
    put = jax.vmap(lambda x, new, at: x.at[at].set(new, mode="drop"))
    return put(earlier.swapaxes(1, 2), new, at)


def _check_method(method: Method) -> None:
    """All parts must look at what heads still hold, layer by layer."""
    reasons = (
        (method.score.feed, method.score, "feeds tokens to the full cache"),
        (method.budget.model_wide, method.budget, "shares slots among all layers"),
        (method.merge.adds, method.merge, "leaves slots that are no tokens"),
        (method.cache.moves, method.cache, "stores keys as of other positions"),
    )
    for cannot, part, what in reasons:
        if cannot:
            raise ValueError(
                f"{type(part).__name__} {what}, so that no prompt can go on from such "
                "a cache; compress the whole prompt at once."
            )


def _check_cache(cache: Cache, method: Method, model: Decoder) -> None:
    first = cache.pools[0]
    found = sizes_of_pools((p.length, p.entry.k.shape[-1]) for p in cache.pools)
    dtype = first.entry.k.dtype
    if found != sizes(model.config) or dtype != model.table[...].dtype:
        raise ValueError(
            f"The cache has {found['layers']} layers of {found['kv_heads']} kv heads "
            f"of size {found['head_dim']} in {dtype.name}, other than the model; go on "
            "with the model that made it."
        )
    if cache.upkeep != method.upkeep:
        raise ValueError(
            "The cache and the method do not evict alike at every step; go on with the "
            "method that made the cache."
        )
    if "bias" in first.slot_state:
        raise ValueError(
            "The cache holds slots that are no tokens, so that no prompt can go on "
            "from it; compress the whole prompt at once."
        )
    if cache.overflow:
        raise ValueError(
            "Tokens that were added to the cache found no slot; compress the earlier "
            "prompt with a larger headroom."
        )


def _check_tokens(prompts: Prompts, start: np.ndarray, config: DecoderConfig) -> None:
    if len(prompts.lengths) != len(start):
        raise ValueError(
            f"The cache holds {len(start)} sequences and {len(prompts.lengths)} are to "
            "go on; give new tokens for each."
        )
    total = start + prompts.lengths
    longest = int(total.argmax())
    if total[longest] > config.max_position:
        raise ValueError(
            f"Prompt {longest} has {total[longest]} tokens with the earlier ones, and "
            f"the model takes {config.max_position}; shorten it."
        )
