"""When things happen: a prompt is compressed, questions are fed, an answer is decoded.

The phases themselves, programs on the device, are in prefill.py and phases.py. The last
token of a prompt is not stored by prefill but fed: every generated token comes from the
compressed cache, none from the uncompressed prompt.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.cache.cache import Cache
from jaxkv.further import further
from jaxkv.keys import row_seeds
from jaxkv.layerwise import mesh_of, on_mesh, over_rows
from jaxkv.mesh import rows_over
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.phases import Turn, decode, feed_copy, feed_donated, start_turn
from jaxkv.prefill import prefill
from jaxkv.prompts import Prompts, bucket, filled, pad
from jaxkv.sample import Sample

SMALLEST_FEED = 8  # fed tokens pad to a power of two from here
SMALLEST_HEADROOM = 64  # and so do the slots reserved for an answer
TokenIds = Sequence[Sequence[int]] | Sequence[int] | np.ndarray


def compress(
    model: Decoder,
    token_ids: TokenIds,
    method: Method,
    *,
    cache: Cache | None = None,
    headroom: int = 256,
    groups: int | None = None,
    seed: int = 0,
) -> Cache:
    """A compressed prompt (or a batch of them, of any lengths), to be asked questions.

    token_ids: one prompt or several. headroom: tokens that can follow (question and
    answer together). groups: head groups, within which head budgets sum; when not given
    one, or on a mesh the length of its tensor axis. seed: for methods that draw at
    random, with each sequence's own tokens.

    On a mesh (`jaxkv.load`) prompts lie along its data and fsdp axes, as far as these
    divide them; those that no axis divides are on every device.

    cache: where the prompts go on from, a row for each of its sequences. The new tokens
    see what it holds and themselves, and heads keep `method.slots` of the whole length
    from both; so a long prompt can come in pieces. The given cache is not changed. What
    was evicted is gone, so pieces keep other tokens than one prompt would; scores of
    attention come from the new tokens' queries. Raises ValueError, one sentence, for a
    method or a cache that cannot go on.
    """
    prompts = pad(token_ids, model.config.vocabulary, model.config.max_position)
    if cache is not None:
        return further(
            model, prompts, method, cache, headroom=headroom, groups=groups, seed=seed
        )
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
    groups: int | None = None,
    seed: int | Sequence[int] = 0,
) -> list[list[int]]:
    """New tokens for every prompt, or for every question asked of a compressed cache.

    With `method` the prompts are compressed first; with `cache` the tokens are a
    question to a copy of it (one row a sequence; a cache of one sequence serves many
    questions). Stop tokens (the model's own by default) end a row and are not returned.
    seed: one for all rows, or one a row.
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
    groups: int | None = None,
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
    rows = len(token_ids) if np.ndim(token_ids[0]) else 1
    for start in range(0, max_new_tokens, chunk):
        steps = min(chunk, max_new_tokens - start)
        with on_mesh(model):
            turn, tokens = decode(model, turn, steps, sample, stops)
        new = np.asarray(tokens)[:rows, :steps]
        yield [[int(t) for t in row if t >= 0] for row in new]
        if bool(turn.done.all()):
            return


def begin(
    model: Decoder,
    token_ids: TokenIds,
    method: Method | None,
    cache: Cache | None,
    max_new_tokens: int,
    *,
    groups: int | None = None,
    seed: int | Sequence[int] = 0,
) -> Turn:
    """Compresses the prompts or takes the cache, and feeds what precedes the answer.

    Where a mesh does not divide the rows, more follow that repeat the first.
    """
    config = model.config
    tokens = pad(token_ids, config.vocabulary, config.max_position, SMALLEST_FEED)
    seeds = row_seeds(seed, len(tokens.lengths))
    mesh = mesh_of(model)
    multiple = 1 if mesh is None else rows_over(mesh)
    seeds += seeds[:1] * (-len(seeds) % multiple)
    if cache is not None:
        if len(cache.next_position) == 1:
            tokens = filled(tokens, multiple)
        B = len(tokens.lengths)
        with on_mesh(model):
            cache = _for_questions(cache, B)
            _check_room(cache, int(tokens.lengths.max()), max_new_tokens, config)
            logits, cache = feed_copy(model, cache, tokens.token_ids, tokens.lengths)
        return start_turn(cache, logits, seeds[:B])
    assert method is not None
    prompts = pad(token_ids, config.vocabulary, config.max_position)
    prompts = filled(prompts, multiple)
    check_context(config.max_position, int(prompts.lengths.max()), max_new_tokens)
    (cache,) = prefill(
        model,
        prompts,
        (method,),
        headroom=bucket(max_new_tokens + 1, SMALLEST_HEADROOM),
        groups=groups,
        rerun=1,
        seed=seed if isinstance(seed, int) else 0,
    )
    last = _last_tokens(prompts)
    with on_mesh(model):
        logits, cache = feed_donated(model, cache, last.token_ids, last.lengths)
    return start_turn(cache, logits, seeds)


def _last_tokens(prompts: Prompts) -> Prompts:
    """Each prompt's last token."""
    rows = np.arange(len(prompts.lengths))
    last = prompts.token_ids[rows, prompts.lengths - 1][:, None]
    return Prompts(last, np.ones_like(prompts.lengths))


def _check_room(cache: Cache, asked: int, new: int, config: DecoderConfig) -> None:
    check_context(config.max_position, int(cache.next_position.max()) + asked, new)
    lasting = cache.lasting_room
    if asked > cache.room or (lasting is not None and asked + new > lasting):
        room = cache.room if lasting is None else lasting
        raise ValueError(
            f"The cache has room for {room} more tokens, and the question and "
            f"answer may take {asked + new}; compress with a larger headroom."
        )


def _for_questions(cache: Cache, B: int) -> Cache:
    """The cache with one row a question; a cache of one sequence is copied for each."""
    have = cache.pools[0].next_position.shape[0]
    if have == B:
        return cache
    if have != 1:
        raise ValueError(
            f"The cache holds {have} sequences and there are {B} questions; ask one of "
            "each, or any number of a cache of one sequence."
        )
    return _copies(cache, B)


@partial(jax.jit, static_argnames="B")
def _copies(cache: Cache, B: int) -> Cache:
    return jax.tree.map(lambda a: over_rows(jnp.repeat(a, B, axis=0)), cache)


def check_context(longest: int, prompt: int, new: int) -> None:
    """Raises ValueError where a prompt and what is to follow pass the longest."""
    if prompt + new > longest:
        raise ValueError(
            f"{prompt} prompt tokens and {new} new ones pass the model's context of "
            f"{longest}; shorten the prompt or ask for fewer."
        )
