"""measure: what entrants answer, what they hold and how long it takes, in one setting.

Answers come from compressed caches alone: what is asked is run on them (trials.py).
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import jaxkv.configs.methods.full
from jaxkv.cache.cache import Cache
from jaxkv.cache.pages import pack
from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.kept import pack_positions
from jaxkv.evaluate.trials import Ask, Batch, Trial
from jaxkv.heads import Heads
from jaxkv.kept import Kept, empty_trail
from jaxkv.layerwise import head_groups, on_mesh
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.phases import SMALLEST_LOOP, decode, feed, start_turn
from jaxkv.pools import pool_shapes
from jaxkv.prefill import prefill
from jaxkv.sample import Sample

FULL = jaxkv.configs.methods.full.METHOD
CHUNK = SMALLEST_LOOP  # steps of a call, so that all answers share one program
Key = tuple[str, int, int]  # task, sample, question
T = TypeVar("T")


@dataclass
class Measured:
    """What one entrant said, held and took, batch by batch."""

    answers: dict[Key, str] = field(default_factory=dict)
    cache_bytes: list[float] = field(default_factory=list)  # a prompt's, each batch
    headroom_bytes: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)  # a head's, run-again token too
    head_slots: list[np.ndarray] = field(default_factory=list)  # [L, K] without it
    feed_s: list[list[float]] = field(default_factory=list)  # by batch and question
    decode_s: list[list[float]] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    bits: np.ndarray | None = None  # what it kept of the prompt that is shown


@dataclass
class Setting:
    """What all entrants of one setting share, and each one's own."""

    measured: dict[Entrant, Measured]
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of each batch
    prefill: list[float] = field(default_factory=list)
    full_bytes: list[float] = field(default_factory=list)

    def warm(self, by_batch: Sequence[T]) -> list[T]:
        """The entries of those batches that found their programs compiled."""
        pairs = enumerate(zip(self.shapes, by_batch, strict=True))
        return [entry for i, (shape, entry) in pairs if shape in self.shapes[:i]]

    @property
    def prefill_s(self) -> float:
        """Seconds of a batch's prefill and all compressions, on warm programs."""
        return median(self.warm(self.prefill))

    @property
    def prefill_compile_s(self) -> float:
        """What the first prefill took beyond the others."""
        return max(self.prefill[0] - self.prefill_s, 0.0)

    def feed_s(self, entrant: Entrant) -> float:
        """Seconds to feed what is asked, on warm programs."""
        return median(chain.from_iterable(self.warm(self.measured[entrant].feed_s)))

    def decode_step_s(self, entrant: Entrant) -> float:
        """Seconds of a decode step, on warm programs."""
        own = self.measured[entrant]
        seconds = chain.from_iterable(self.warm(own.decode_s))
        steps = chain.from_iterable(self.warm(own.steps))
        return median(s / n for s, n in zip(seconds, steps, strict=True))

    def compile_s(self, entrant: Entrant) -> float:
        """What the first prefill, feed and decode took beyond the others."""
        own = self.measured[entrant]
        steady = self.decode_step_s(entrant) * own.steps[0][0] + self.feed_s(entrant)
        extra = own.feed_s[0][0] + own.decode_s[0][0] - steady
        return self.prefill_compile_s + max(extra, 0.0)


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    entrants: Sequence[Entrant],
    batches: Sequence[Batch],
    *,
    headroom: int,
    shown: Trial,
    tick: Callable[[str], None],
) -> Setting:
    """Every entrant's answers to every batch, and what it kept of the `shown` prompt.

    Where no two batches share programs, the first runs twice, so that compiling can be
    told from running.
    """
    found = Setting({entrant: Measured() for entrant in entrants})
    if not entrants:
        return found
    methods = tuple(entrant.method for entrant in entrants)
    for batch in repeated(batches):
        tick("prefill")
        start = time.perf_counter()
        caches = list(
            prefill(
                model,
                batch.prompts,
                methods,
                headroom=headroom,
                rerun=batch.rerun,
                future=batch.future,
            )
        )
        jax.block_until_ready(caches)
        found.shapes.append(batch.shape)
        found.prefill.append(time.perf_counter() - start)
        found.full_bytes.append(full_bytes(model, batch, headroom))
        for entrant in entrants:
            tick(entrant.name)
            own = found.measured[entrant]
            cache = caches.pop(0)
            _weigh(own, cache, batch, batch.row(shown))
            own.feed_s.append([])
            own.decode_s.append([])
            own.steps.append([])
            for ask in batch.asks:
                _answer(own, model, tokenizer, cache, ask)
            del cache
    return found


def repeated(batches: Sequence[Batch]) -> list[Batch]:
    """The batches, and the first once more where no two have one shape."""
    alone = len({batch.shape for batch in batches}) == len(batches)
    return [*batches, *(batches[:1] if alone else ())]


def full_bytes(model: Decoder, batch: Batch, headroom: int) -> float:
    """Bytes that a full cache of the batch holds a prompt, without making one."""
    config = model.config
    layers = Counter(config.only(i) for i in range(config.layers))
    of_layers = (n * _full_layer(model, c, batch, headroom) for c, n in layers.items())
    return sum(of_layers) / len(batch.prompts.lengths)


def _full_layer(
    model: Decoder, config: DecoderConfig, batch: Batch, headroom: int
) -> int:
    """Bytes that the only layer of such a decoder holds of a batch."""
    B, S = batch.prompts.token_ids.shape
    K, H = config.rows(0), config.entry(0)
    one_layer = Heads.of(config)
    (shape,) = pool_shapes(FULL, one_layer, S, headroom, head_groups(model))
    stored = jnp.asarray(batch.prompts.lengths - batch.rerun)
    length = jnp.broadcast_to(stored[:, None], (B, K))
    found = 0

    def weigh(k, v, position, order) -> None:
        """Runs on shapes alone; slots in use are the only data that bytes depend on."""
        nonlocal found
        of_rows = empty_trail(config, B, K, k.dtype)
        kept = Kept(k, v, position, order, length, row_state=of_rows)
        pages = pack(kept, stored, shape)
        with jax.ensure_compile_time_eval():
            held = replace(pages, length=length.reshape(pages.length.shape))
            found = held.cache_bytes

    entry = jax.ShapeDtypeStruct((B, S, K, H), model.table[...].dtype)
    position = jax.ShapeDtypeStruct((B, S), jnp.int32)
    order = jax.ShapeDtypeStruct((B, K, S), jnp.int32)
    v = entry if config.values_apart(0) else None
    jax.eval_shape(weigh, entry, v, position, order)
    return found


def _weigh(own: Measured, cache: Cache, batch: Batch, shown: int | None) -> None:
    """Notes what the batch's real prompts hold, before anything is fed."""
    if batch.real < len(batch.prompts.lengths):
        # Cut on the host: an eager slice would compile a program for each shape.
        cache = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[: batch.real]), cache)
    lengths = cache.lengths
    own.cache_bytes.append(cache.cache_bytes / batch.real)
    own.headroom_bytes.append(cache.headroom_bytes / batch.real)
    rows = sum(pages.length.size for pages in cache.pools)
    own.slots.append(float(lengths.sum() / rows) + batch.rerun)
    own.head_slots.append(lengths.mean(axis=1))
    if shown is not None:
        positions = [layer[shown] for layer in cache.positions]
        own.bits = pack_positions(positions, int(batch.prompts.lengths[shown]))


def _answer(
    own: Measured, model: Decoder, tokenizer: Tokenizer, cache: Cache, ask: Ask
) -> None:
    """Feeds a copy of the cache what is asked, decodes, notes answers and times."""
    start = time.perf_counter()
    with on_mesh(model):
        logits, fed = _feed(model, cache, ask.tokens.token_ids, ask.tokens.lengths)
    jax.block_until_ready(logits)
    own.feed_s[-1].append(time.perf_counter() - start)
    turn = start_turn(fed, logits, 0)
    start = time.perf_counter()
    chunks = []
    for begun in range(0, ask.steps, CHUNK):
        steps = min(CHUNK, ask.steps - begun)
        with on_mesh(model):
            turn, tokens = decode(
                model, turn, steps, Sample(), model.config.stop_tokens
            )
        chunks.append(np.asarray(tokens)[:, :steps])
        if bool(turn.done.all()):
            break
    own.decode_s[-1].append(time.perf_counter() - start)
    own.steps[-1].append(int(turn.step))
    for trial, row in zip(ask.trials, np.concatenate(chunks, axis=1), strict=True):
        if trial is not None:
            ids = [int(t) for t in row[: trial.steps] if t >= 0]
            own.answers[trial.key] = tokenizer.decode(ids)


@jax.jit
def _feed(model: Decoder, cache: Cache, token_ids, lengths):
    return feed(model, cache, token_ids, lengths)
