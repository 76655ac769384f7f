"""Feed and decode, programs on the device that run against a compressed cache.

    feed      tokens run against the cache: the last prompt token once more, or a
              question; their entries are appended
    decode    one loop, a token a step, with the caches donated

Which phase runs on what is generate.py's to know; prefill is in prefill.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import append, trail_of
from jaxkv.keys import row_keys
from jaxkv.layerwise import over_rows
from jaxkv.models.decoder import Decoder
from jaxkv.prompts import bucket
from jaxkv.rules import gathered
from jaxkv.sample import Sample
from jaxkv.upkeep import keep_up
from pallas_kernels.dispatch import target

SMALLEST_LOOP = 8  # decode programs are made for powers of two of steps from here
# A GPU waits for its host wherever a loop asks whether all rows are done.
STEPS_BETWEEN = {"gpu": SMALLEST_LOOP, "sm90": SMALLEST_LOOP}


def feed(
    model: Decoder,
    cache: Cache,
    token_ids: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """Runs each row's first `lengths` tokens against the cache, and appends them.

    Returns the logits after each row's last token, and the cache, cut back to its
    budget where its method evicts at every step.
    """
    x, cache = _fed(model, cache, token_ids, lengths)
    final = jnp.maximum(lengths - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, final, axis=1)[:, 0]
    return model.logits(model.norm(x)), cache


def _fed(
    model: Decoder,
    cache: Cache,
    token_ids: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B T D"], Cache]:
    """The hidden states after the last layer, and the cache with the tokens in it."""
    T = token_ids.shape[1]
    offset = jnp.arange(T, dtype=jnp.int32)[None]
    start = cache.pools[0].next_position[:, None]
    true_position = start + offset
    position = jnp.where(offset < lengths[:, None], true_position, -1)
    x = over_rows(model.embed(token_ids))
    pools = list(cache.pools)
    for i, layer in enumerate(model.layers):
        layer = gathered(layer, "layers.*", x)
        span = pools[0].span
        pages, within = pools[i // span], i % span
        attention, upkeep = layer.attention, cache.upkeep
        normed, before = layer.attention_norm(x), trail_of(pages, within)
        q, k, v = attention.entries(normed, true_position, before)
        trail = attention.trail(normed, lengths, before)
        pages = append(pages, k, v, position, within, trail)
        heads, lse, logits = attention.attend_pages(
            q, pages, position, within, return_logits=upkeep is not None
        )
        if upkeep is not None:
            assert logits is not None
            frequencies = jnp.asarray(attention.inverse_frequencies)
            pages = keep_up(pages, upkeep, position, lse, logits, frequencies)
        pools[i // span] = pages
        x = x + attention.output(heads)
        x = x + layer.mlp(layer.mlp_norm(x))
    return x, replace(cache, pools=tuple(pools))


feed_copy = jax.jit(feed)
feed_donated = jax.jit(feed, donate_argnames=("cache",))


@jax.jit
def feed_losses(
    model: Decoder,
    cache: Cache,
    token_ids: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T-1"]:
    """-log p(token t + 1 | the cache, tokens 0 .. t) in nats, fp32; 0 beyond `lengths`.

    All tokens but each row's last are fed to a copy of the cache.
    """
    x, _ = _fed(model, cache, token_ids[:, :-1], jnp.maximum(lengths - 1, 0))

    def loss(at: tuple[Array, Array]) -> Array:
        """Of one step of all rows, so that one step's logits exist at a time."""
        x_BD, next_B = at
        logits = model.logits(model.norm(x_BD)).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, next_B[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    losses = jax.lax.map(loss, (x.swapaxes(0, 1), token_ids[:, 1:].T)).T
    real = jnp.arange(1, token_ids.shape[1])[None] < lengths[:, None]
    return jnp.where(real, losses, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turn:
    """Where a generation stands: the cache, and the logits of the next token."""

    cache: Cache
    logits: Float[Array, "B V"]
    keys: Array  # [B] random keys
    done: Array  # [B] a stop token has come
    step: Int[Array, ""]


def start_turn(
    cache: Cache, logits: Float[Array, "B V"], seed: int | Sequence[int]
) -> Turn:
    """A generation about to draw its first token; seed: one, or one a row."""
    B = logits.shape[0]
    keys = row_keys(seed, cache.pools[0].next_position)
    return Turn(cache, logits, keys, jnp.zeros(B, bool), jnp.zeros((), jnp.int32))


def decode(
    model: Decoder,
    turn: Turn,
    steps: int,
    sample: Sample,
    stop_tokens: Sequence[int],
) -> tuple[Turn, Int[Array, "B steps"]]:
    """Up to `steps` tokens a row in one loop on the device; -1 after a row has ended.

    The turn is donated. Programs are made for powers of two of `steps`: the array may
    be wider than `steps`, with -1 beyond.
    """
    size = bucket(steps, SMALLEST_LOOP)
    return _decode(model, turn, jnp.int32(steps), sample, tuple(stop_tokens), size)


@partial(
    jax.jit,
    static_argnames=("sample", "stop_tokens", "size"),
    donate_argnames=("turn",),
)
def _decode(model, turn, steps, sample, stop_tokens, size):
    B = turn.logits.shape[0]
    stops = jnp.array(stop_tokens, jnp.int32)

    between = STEPS_BETWEEN.get(target(), 1)

    def step(_, state):
        """One token a row; beyond `steps` nothing changes."""
        i, turn, tokens = state
        active = i < steps
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(turn.keys, turn.step)
        token = sample(turn.logits, keys)
        done = turn.done | (token[:, None] == stops[None]).any(axis=-1)
        tokens = tokens.at[:, i].set(jnp.where(done | ~active, -1, token))
        alive = (~done & active).astype(jnp.int32)
        logits, cache = feed(model, turn.cache, token[:, None], alive)
        turn = replace(
            turn,
            cache=cache,
            logits=jnp.where(active, logits.astype(turn.logits.dtype), turn.logits),
            done=jnp.where(active, done, turn.done),
            step=turn.step + active.astype(jnp.int32),
        )
        return i + 1, turn, tokens

    def several(state):
        return jax.lax.fori_loop(0, between, step, state)

    def more(state):
        i, turn, _ = state
        return (i < steps) & ~turn.done.all()

    empty = jnp.full((B, size), -1, jnp.int32)
    _, turn, tokens = jax.lax.while_loop(more, several, (jnp.int32(0), turn, empty))
    return turn, tokens
