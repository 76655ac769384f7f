"""measure: what entrants answer, what they hold and how long it takes, in one setting.

Answers come from compressed caches alone: what is asked is run on them (trials.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import jaxkv.configs.methods.full
from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import pack
from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.trials import Ask, Batch
from jaxkv.heads import Heads
from jaxkv.kept import Kept
from jaxkv.models.decoder import Decoder
from jaxkv.phases import decode, feed, start_turn
from jaxkv.pools import pool_shapes
from jaxkv.prefill import prefill
from jaxkv.sample import Sample

FULL = jaxkv.configs.methods.full.METHOD
Key = tuple[str, int, int]  # task, sample, question


@dataclass
class Measured:
    """What one entrant said, held and took, batch by batch."""

    answers: dict[Key, str] = field(default_factory=dict)
    cache_bytes: list[float] = field(default_factory=list)  # a prompt's, each batch
    headroom_bytes: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)  # a head's, run-again token too
    feed_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def decode_step_s(self) -> float:
        """Seconds of a decode step, the first answers (which compile) left out."""
        pairs = zip(self.decode_s[1:], self.steps[1:], strict=True)
        return median(seconds / steps for seconds, steps in pairs)

    @property
    def compile_s(self) -> float:
        """What the first feed and decode took beyond the others."""
        steady = self.decode_step_s * self.steps[0] + median(self.feed_s[1:])
        return max(self.feed_s[0] + self.decode_s[0] - steady, 0.0)


@dataclass
class Setting:
    """What all entrants of one setting share, and each one's own."""

    measured: dict[Entrant, Measured]
    prefill: list[float] = field(default_factory=list)
    full_bytes: list[float] = field(default_factory=list)

    @property
    def prefill_s(self) -> float:
        """Seconds of a batch's prefill and all compressions, the first left out."""
        return median(self.prefill[1:])

    @property
    def prefill_compile_s(self) -> float:
        """What the first prefill took beyond the others."""
        return max(self.prefill[0] - self.prefill_s, 0.0)


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    entrants: Sequence[Entrant],
    batches: Sequence[Batch],
    *,
    headroom: int,
    steps: int,
    tick: Callable[[str], None],
) -> Setting:
    """Every entrant's answers to every batch; `steps` bounds an answer's tokens.

    A single batch runs twice, so that compiling can be told from running.
    """
    found = Setting({entrant: Measured() for entrant in entrants})
    if not entrants:
        return found
    methods = tuple(entrant.method for entrant in entrants)
    for batch in batches if len(batches) > 1 else [*batches, *batches]:
        tick("prefill")
        start = time.perf_counter()
        caches = list(
            prefill(model, batch.prompts, methods, headroom=headroom, rerun=batch.rerun)
        )
        jax.block_until_ready(caches)
        found.prefill.append(time.perf_counter() - start)
        found.full_bytes.append(full_bytes(model, batch, headroom))
        for entrant in entrants:
            tick(entrant.name)
            own = found.measured[entrant]
            cache = caches.pop(0)
            _weigh(own, cache, batch)
            for ask in batch.asks:
                _answer(own, model, tokenizer, cache, ask, steps)
            del cache
    return found


def full_bytes(model: Decoder, batch: Batch, headroom: int) -> float:
    """Bytes that a full cache of the batch holds a prompt, without making one."""
    B, S = batch.prompts.token_ids.shape
    K, H = model.config.kv_heads, model.config.head_dim
    one_layer = Heads(1, K)
    (shape,) = pool_shapes(FULL, one_layer, S, batch.rerun, headroom, 1)
    stored = jnp.asarray(batch.prompts.lengths - batch.rerun)
    length = jnp.broadcast_to(stored[:, None], (B, K))
    found = 0

    def weigh(k, v, position, order) -> None:
        """Runs on shapes alone; slots in use are the only data that bytes depend on."""
        nonlocal found
        pages = pack(Kept(k, v, position, order, length), stored, shape)
        with jax.ensure_compile_time_eval():
            held = replace(pages, length=length.reshape(pages.length.shape))
            found = held.cache_bytes

    entry = jax.ShapeDtypeStruct((B, S, K, H), model.table[...].dtype)
    position = jax.ShapeDtypeStruct((B, S), jnp.int32)
    order = jax.ShapeDtypeStruct((B, K, S), jnp.int32)
    jax.eval_shape(weigh, entry, entry, position, order)
    return found * model.config.layers / B


def _weigh(own: Measured, cache: Cache, batch: Batch) -> None:
    """Notes what the batch's real prompts hold, before anything is fed."""
    if batch.real < len(batch.prompts.lengths):
        cache = jax.tree.map(lambda a: a[: batch.real], cache)
    own.cache_bytes.append(cache.cache_bytes / batch.real)
    own.headroom_bytes.append(cache.headroom_bytes / batch.real)
    own.slots.append(float(cache.lengths.mean()) + batch.rerun)


def _answer(
    own: Measured,
    model: Decoder,
    tokenizer: Tokenizer,
    cache: Cache,
    ask: Ask,
    steps: int,
) -> None:
    """Feeds a copy of the cache what is asked, decodes, notes answers and times."""
    start = time.perf_counter()
    logits, fed = _feed(model, cache, ask.tokens.token_ids, ask.tokens.lengths)
    jax.block_until_ready(logits)
    own.feed_s.append(time.perf_counter() - start)
    turn = start_turn(fed, logits, 0)
    start = time.perf_counter()
    turn, tokens = decode(model, turn, steps, Sample(), model.config.stop_tokens)
    jax.block_until_ready(tokens)
    own.decode_s.append(time.perf_counter() - start)
    own.steps.append(int(turn.step))
    for trial, row in zip(ask.trials, np.asarray(tokens), strict=True):
        if trial is not None:
            own.answers[trial.key] = tokenizer.decode([int(t) for t in row if t >= 0])


@jax.jit
def _feed(model: Decoder, cache: Cache, token_ids, lengths):
    return feed(model, cache, token_ids, lengths)
