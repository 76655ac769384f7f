"""When things happen: prefill, compress, feed, decode.

    prefill   the prompt goes through the model layer by layer; each layer's keys and
              values are compressed before the next layer runs
    feed      tokens run against the compressed cache: the last prompt token once more, or
              a question; their entries are appended
    decode    one jitted loop, a token a step, with the caches donated

The prompt's last token is not stored by prefill but fed: every generated token comes from
the compressed cache, none from the uncompressed prompt.
"""

from collections.abc import Iterator, Sequence
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
from jaxkv.compress import compress as compress_layer
from jaxkv.compress import pool_shape
from jaxkv.method import Method
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.prompts import Prompts, bucket, pad
from jaxkv.sample import Sample
from jaxkv.seen import Seen

MLP_TOKENS = 8192  # tokens of a prompt whose inner MLP activations exist at one time
SMALLEST_FEED = 8  # fed tokens pad to a power of two from here
SMALLEST_HEADROOM = 64  # and so do the slots reserved for an answer
TokenIds = Sequence[Sequence[int]] | Sequence[int] | np.ndarray


def compress(
    model: Decoder,
    token_ids: TokenIds,
    method: Method,
    *,
    headroom: int = 256,
    groups: int = 1,
    seed: int = 0,
) -> Cache:
    """A compressed prompt (or a batch of them, of any lengths), to be asked questions.

    token_ids: one prompt or several. headroom: tokens that can follow (question and answer
    together). groups: head groups, the tensor axis's size when kv heads are sharded; head
    budgets sum within a group. seed: for methods that draw at random, with each
    sequence's own tokens.
    """
    prompts = pad(token_ids, model.config.vocabulary, model.config.max_position)
    (cache,) = prefill(
        model, prompts, (method,), headroom=headroom, groups=groups, seed=seed
    )
    return cache


def generate(
    model: Decoder,
    token_ids: TokenIds,
    *,
    method: Method | None = None,
    cache: Cache | None = None,
    max_new_tokens: int = 64,
    sample: Sample = Sample(),  # noqa: B008 - frozen
    stop_tokens: Sequence[int] | None = None,
    groups: int = 1,
    seed: int | Sequence[int] = 0,
) -> list[list[int]]:
    """New tokens for every prompt, or for every question asked of a compressed cache.

    With `method` the prompts are compressed first; with `cache` the tokens are a question
    to a copy of it (one row a sequence; a cache of one sequence serves many questions).
    Stop tokens (the model's own by default) end a row and are not returned. seed: one for
    all rows, or one a row.
    """
    chunks = stream(
        model,
        token_ids,
        method=method,
        cache=cache,
        max_new_tokens=max_new_tokens,
        sample=sample,
        stop_tokens=stop_tokens,
        groups=groups,
        seed=seed,
        chunk=max_new_tokens,
    )
    rows: list[list[int]] = []
    for chunk in chunks:
        rows = rows or [[] for _ in chunk]
        for row, new in zip(rows, chunk, strict=True):
            row.extend(new)
    return rows


def stream(
    model: Decoder,
    token_ids: TokenIds,
    *,
    method: Method | None = None,
    cache: Cache | None = None,
    max_new_tokens: int = 64,
    sample: Sample = Sample(),  # noqa: B008 - frozen
    stop_tokens: Sequence[int] | None = None,
    groups: int = 1,
    seed: int | Sequence[int] = 0,
    chunk: int = 8,
) -> Iterator[list[list[int]]]:
    """As `generate`, giving each row's new tokens every `chunk` steps."""
    if (method is None) == (cache is None):
        raise ValueError("Give either a method or a cache, and not both.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; ask for one at least.")
    stops = model.config.stop_tokens if stop_tokens is None else tuple(stop_tokens)
    turn = begin(
        model, token_ids, method, cache, max_new_tokens, groups=groups, seed=seed
    )
    for start in range(0, max_new_tokens, chunk):
        steps = min(chunk, max_new_tokens - start)
        turn, tokens = decode(model, turn, steps, sample, stops)
        yield [[int(t) for t in row if t >= 0] for row in np.asarray(tokens)[:, :steps]]
        if bool(turn.done.all()):
            return


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turn:
    """Where a generation stands: the cache, and the logits of the next token."""

    cache: Cache
    logits: Float[Array, "B V"]
    keys: Array  # [B] random keys
    done: Array  # [B] a stop token has come
    step: Int[Array, ""]


def begin(
    model: Decoder,
    token_ids: TokenIds,
    method: Method | None,
    cache: Cache | None,
    max_new_tokens: int,
    *,
    groups: int = 1,
    seed: int | Sequence[int] = 0,
) -> Turn:
    """Compresses the prompts or takes the cache, and feeds what comes before the answer."""
    config = model.config
    prompts = pad(token_ids, config.vocabulary, config.max_position, SMALLEST_FEED)
    B = len(prompts.lengths)
    if cache is None:
        assert method is not None
        prompts = pad(token_ids, config.vocabulary, config.max_position)
        _check_context(config.max_position, int(prompts.lengths.max()), max_new_tokens)
        (cache,) = prefill(
            model,
            prompts,
            (method,),
            headroom=bucket(max_new_tokens + 1, SMALLEST_HEADROOM),
            groups=groups,
            rerun=1,
            seed=seed if isinstance(seed, int) else 0,
        )
        last = prompts.token_ids[np.arange(B), prompts.lengths - 1][:, None]
        prompts = Prompts(last, np.ones(B, np.int32))
        feed_tokens = _feed_donated
    else:
        cache = _for_questions(cache, B)
        asked = int(prompts.lengths.max())
        newest = int(cache.next_position.max())
        _check_context(config.max_position, newest + asked, max_new_tokens)
        if asked + max_new_tokens > cache.room:
            raise ValueError(
                f"The cache has room for {cache.room} more tokens, and the question and "
                f"answer may take {asked + max_new_tokens}; compress with a larger "
                "headroom."
            )
        feed_tokens = _feed_copy
    logits, cache = feed_tokens(model, cache, prompts.token_ids, prompts.lengths)
    return start_turn(cache, logits, seed)


def start_turn(
    cache: Cache, logits: Float[Array, "B V"], seed: int | Sequence[int]
) -> Turn:
    """A generation about to draw its first token; seed: one, or one a row."""
    B = logits.shape[0]
    seeds = [seed] * B if isinstance(seed, int) else list(seed)
    if len(seeds) != B:
        raise ValueError(f"There are {len(seeds)} seeds for {B} rows; give one each.")
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    keys = jax.vmap(jax.random.fold_in)(keys, cache.layers[0].next_position)
    return Turn(cache, logits, keys, jnp.zeros(B, bool), jnp.zeros((), jnp.int32))


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

    rerun: how many of each prompt's last tokens are not stored, because they will be fed
    to the compressed cache (they still count as queries, and in the budget).
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
    keys = _sequence_keys(token_ids, lengths, seed)
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
        k=k,
        v=v,
        position=position,
        valid=position < lengths[:, None],
        stored=position < lengths[:, None] - rerun,
        layer=index,
        key=keys,
    )
    pages = tuple(
        compress_layer(seen, m, n, shape)
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
    final = jnp.maximum(lengths - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, final, axis=1)[:, 0]
    return model.logits(model.norm(x)), Cache(tuple(layers))


_feed_copy = jax.jit(feed)
_feed_donated = jax.jit(feed, donate_argnames=("cache",))


def decode(
    model: Decoder,
    turn: Turn,
    steps: int,
    sample: Sample,
    stop_tokens: Sequence[int],
) -> tuple[Turn, Int[Array, "B steps"]]:
    """Up to `steps` tokens a row in one loop on the device; -1 after a row has ended.

    The turn is donated. Programs are made for powers of two of `steps`: the array may be
    wider than `steps`, with -1 beyond.
    """
    size = bucket(steps, 8)
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


@partial(jax.jit, static_argnames=("seed",))
def _sequence_keys(
    token_ids: Int[Array, "B S"], lengths: Int[Array, " B"], seed: int
) -> Array:
    """A key a sequence from its own tokens, so that a row draws as its single run does."""
    at = jnp.arange(token_ids.shape[1], dtype=jnp.uint32)[None]
    real = at < lengths[:, None].astype(jnp.uint32)
    mixed = (token_ids.astype(jnp.uint32) + jnp.uint32(1)) * (
        at * jnp.uint32(2654435761) + jnp.uint32(40503)
    )
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
    digest = jnp.where(real, mixed, 0).sum(axis=1, dtype=jnp.uint32)
    base = jax.random.key(seed)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, digest)


def _for_questions(cache: Cache, B: int) -> Cache:
    """The cache with one row a question; a cache of one sequence is copied for each."""
    have = cache.layers[0].next_position.shape[0]
    if have == B:
        return cache
    if have != 1:
        raise ValueError(
            f"The cache holds {have} sequences and there are {B} questions; ask one of "
            "each, or any number of a cache of one sequence."
        )
    return jax.tree.map(lambda a: jnp.repeat(a, B, axis=0), cache)


def _check_context(longest: int, prompt: int, new: int) -> None:
    if prompt + new > longest:
        raise ValueError(
            f"{prompt} prompt tokens and {new} new ones pass the model's context of "
            f"{longest}; shorten the prompt or ask for fewer."
        )
