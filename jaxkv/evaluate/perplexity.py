"""Perplexity of held-out text, from the cache that each entrant keeps of its start.

The start of a text is compressed before what follows is known. Its last token is run
again and the continuation fed; the perplexity is exp of the mean -log p of the
continuation's tokens, over all texts.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.tasks.held_out import held_out
from jaxkv.layerwise import mesh_of, on_mesh
from jaxkv.mesh import rows_over
from jaxkv.models.decoder import Decoder
from jaxkv.phases import feed_losses
from jaxkv.prefill import prefill
from jaxkv.prompts import Prompts, bucket, filled, pad


@dataclass(frozen=True)
class Texts:
    """A batch: the starts of texts, and their last token with what follows it."""

    starts: Prompts
    rest: Prompts


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean -log p in nats, and of how many tokens."""

    value: float
    tokens: int


def draw_texts(
    tokenizer: Tokenizer,
    context: int,
    samples: int,
    size: int,
    seed: int,
    most: int,
    vocabulary: int,
) -> tuple[Texts, ...]:
    """`samples` texts of `context` tokens, and as many more as fill batches of `size`.

    most: tokens of a continuation that are read.
    """
    starts, rests = [], []
    for i in range(-(-samples // size) * size):
        rng = np.random.default_rng([seed, zlib.crc32(b"held_out"), i])
        start, rest = held_out(tokenizer, context, rng)
        start_ids = tokenizer.encode(start).ids
        rest_ids = tokenizer.encode(f" {rest}", add_special_tokens=False).ids
        starts.append(start_ids)
        rests.append([start_ids[-1], *rest_ids[:most]])
    S = bucket(max(map(len, starts)))
    return tuple(
        Texts(
            pad(starts[at : at + size], vocabulary, S, S),
            _padded(rests[at : at + size], most + 1),
        )
        for at in range(0, len(starts), size)
    )


def perplexities(
    model: Decoder,
    entrants: Sequence[Entrant],
    texts: Sequence[Texts],
    *,
    headroom: int,
    tick: Callable[[str], None],
) -> dict[Entrant, Perplexity]:
    """Each entrant's perplexity; one prefill of a batch for all of them."""
    methods = tuple(entrant.method for entrant in entrants)
    mesh = mesh_of(model)
    places = 1 if mesh is None else rows_over(mesh)
    losses = dict.fromkeys(entrants, 0.0)
    tokens = 0
    for batch in texts if entrants else ():
        tick("perplexity")
        rows = len(batch.rest.lengths)
        starts, rest = filled(batch.starts, places), filled(batch.rest, places)
        sizes = {"headroom": headroom, "rerun": 1, "future": rest}
        caches = list(prefill(model, starts, methods, **sizes))
        tokens += int(batch.rest.lengths.sum()) - rows
        for entrant in entrants:
            tick(entrant.name)
            with on_mesh(model):
                found = feed_losses(model, caches.pop(0), rest.token_ids, rest.lengths)
            losses[entrant] += float(np.asarray(found, np.float64)[:rows].sum())
    return {
        entrant: Perplexity(float(np.exp(loss / tokens)), tokens)
        for entrant, loss in losses.items()
    }


def _padded(rows: Sequence[Sequence[int]], width: int) -> Prompts:
    """Rows to the right of which 0 stands, up to `width`."""
    token_ids = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(token_ids, rows, strict=True):
        row[: len(ids)] = ids
    return Prompts(token_ids, np.array([len(ids) for ids in rows], np.int32))
