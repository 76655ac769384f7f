"""The phases, each a program on the device: prefill, feed, decode.

    prefill   the prompt goes through the model layer by layer; each layer's keys and
              values are compressed before the next layer runs
    feed      tokens run against the compressed cache: the last prompt token once more,
              or a question; their entries are appended
    decode    one loop, a token a step, with the caches donated

Which phase runs on what is generate.py's to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxkv.attend.all_pages import attend
from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import PoolShape, append
from jaxkv.compress import compress, pool_shape
from jaxkv.keys import row_keys, sequence_keys
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.prompts import Prompts, bucket
from jaxkv.sample import Sample
from jaxkv.seen import Seen

MLP_TOKENS = 8192  # tokens of a prompt whose inner MLP activations exist at one time
SMALLEST_LOOP = 8  # decode programs are made for powers of two of steps from here


def prefill(
    model: Decoder,
    prompts: Prompts,
    methods: tuple[Method, ...],
    *,
    headroom: int,
    groups: int = 1,
    rerun: int = 0,
    seed: int = 0,
) -> tuple[Cache, ...]:
    """One pass over the prompts, and a compressed cache for each method.

    rerun: how many of each prompt's last tokens are not stored, because they will be
    fed to the compressed cache (they still count as queries, and in the budget).
    """
    B, S = prompts.token_ids.shape
    K = model.config.kv_heads
    if K % groups:
        raise ValueError(f"groups={groups} does not divide the model's {K} kv heads.")
    if headroom < 1:
        raise ValueError(f"headroom={headroom}; reserve one token at least.")
    shapes = tuple(pool_shape(m, S, rerun, headroom, K, groups) for m in methods)
    slots = tuple(
        jnp.array([max(m.slots(int(n)) - rerun, 0) for n in prompts.lengths], jnp.int32)
        for m in methods
    )
    token_ids = _spread(model, prompts.token_ids)
    x = _embed(model, token_ids)
    lengths = jnp.asarray(prompts.lengths)
    keys = sequence_keys(token_ids, lengths, seed)
    layers = []
    for i, layer in enumerate(model.layers):
        x, pages = _prefill_layer(
            layer,
            x,
            lengths,
            slots,
            keys,
            jnp.int32(i),
            methods=methods,
            shapes=shapes,
            rerun=rerun,
            last=i == len(model.layers) - 1,
        )
        layers.append(pages)
    return tuple(Cache(tuple(pages)) for pages in zip(*layers, strict=True))


@partial(
    jax.jit,
    static_argnames=("methods", "shapes", "rerun", "last"),
    donate_argnames=("x",),
)
def _prefill_layer(
    layer: Layer,
    x: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    slots: tuple[Array, ...],
    keys: Array,
    index: Int[Array, ""],
    *,
    methods: tuple[Method, ...],
    shapes: tuple[PoolShape, ...],
    rerun: int,
    last: bool,
):
    """One layer over the whole prompt: the hidden states after it, and its pages."""
    B, S, _ = x.shape
    position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    q, k, v = layer.attention.entries(layer.attention_norm(x), position)
    W = max(1, *(m.score.queries for m in methods))
    at = lengths[:, None] - W + jnp.arange(W)[None]
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
    pages = tuple(
        compress(seen, m, n, shape)
        for m, n, shape in zip(methods, slots, shapes, strict=True)
    )
    if last:  # nothing reads the hidden states after it
        return x, pages
    x = x + layer.attention.attend_prompt(q, k, v)
    return x + _in_blocks(lambda h: layer.mlp(layer.mlp_norm(h)), x), pages


def feed(
    model: Decoder,
    cache: Cache,
    token_ids: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """Runs each row's first `lengths` tokens against the cache, and appends them.

    Returns the logits after each row's last token, and the cache.
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
    start = cache.layers[0].next_position[:, None]
    true_position = start + offset
    position = jnp.where(offset < lengths[:, None], true_position, -1)
    x = model.embed(token_ids)
    layers = []
    for layer, pages in zip(model.layers, cache.layers, strict=True):
        q, k, v = layer.attention.entries(layer.attention_norm(x), true_position)
        pages = append(pages, k, v, position)
        out, _ = attend(q, pages, position)
        x = x + layer.attention.output(out)
        x = x + layer.mlp(layer.mlp_norm(x))
        layers.append(pages)
    return x, Cache(tuple(layers))


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
    keys = row_keys(seed, cache.layers[0].next_position)
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

    def body(state):
        i, turn, tokens = state
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(turn.keys, turn.step)
        token = sample(turn.logits, keys)
        done = turn.done | (token[:, None] == stops[None]).any(axis=-1)
        tokens = tokens.at[:, i].set(jnp.where(done, -1, token))
        alive = (~done).astype(jnp.int32)
        logits, cache = feed(model, turn.cache, token[:, None], alive)
        logits = logits.astype(turn.logits.dtype)
        turn = replace(turn, cache=cache, logits=logits, done=done, step=turn.step + 1)
        return i + 1, turn, tokens

    def more(state):
        i, turn, _ = state
        return (i < steps) & ~turn.done.all()

    empty = jnp.full((B, size), -1, jnp.int32)
    _, turn, tokens = jax.lax.while_loop(more, body, (jnp.int32(0), turn, empty))
    return turn, tokens


def _spread(model: Decoder, token_ids: np.ndarray) -> Int[Array, "B S"]:
    """Rows over the data axis of the mesh that the model lies on, if they divide by it.

    What comes of them follows: each chip holds the pages of its own rows and heads.
    """
    lies = model.table[...].sharding
    if not isinstance(lies, NamedSharding):
        return jnp.asarray(token_ids)
    divides = len(token_ids) % lies.mesh.shape.get("data", 1) == 0
    rows = "data" if "data" in lies.mesh.shape and divides else None
    return jax.device_put(token_ids, NamedSharding(lies.mesh, PartitionSpec(rows)))


@jax.jit
def _embed(model: Decoder, token_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return model.embed(token_ids)


def _in_blocks(f, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """f over the tokens, in blocks of at most MLP_TOKENS."""
    B, S, D = x.shape
    blocks = max(1, B * S // MLP_TOKENS)
    if blocks == 1 or S % blocks:
        return f(x)
    x = x.reshape(B, blocks, S // blocks, D).swapaxes(0, 1)
    return jax.lax.map(f, x).swapaxes(0, 1).reshape(B, S, D)
