"""Which ranks hurt least: a greedy search to a byte budget (MatryoshkaKV).

MatryoshkaKV, arXiv 2410.14731, section 3.3. A round measures, for each layer, kv head
and its key or value, how far the last hidden states move when that rank goes down by a
step:

    e = ||h' - h|| / ||h||        over all tokens, h with the ranks so far

Here the heads of a layer store equally many numbers, so that a layer gives up a step of
every head, each of its key or of its value, whichever moves less, or all of their keys,
or all of their values, where that moves less together; and the half of the layers that
move least give way. Rounds go on until the layers hold their budget together, which the
last of them meets exactly.
No rank falls below the least one, as in the paper, where that is a quarter of a head:
what moves the mean of all tokens little may be what one of them is found by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkv.convert.base import Progress, Rows, in_fp32
from jaxkv.convert.low_rank import through
from jaxkv.models.decoder import Decoder
from jaxkv.models.sizes import LowRankSizes
from jaxkv.prompts import pad

KEY, VALUE = 0, 1
Ranks = Int[np.ndarray, "K 2"]  # of each head, key and value


@dataclass(frozen=True)
class Search:
    """What is asked of a model whose layers have full rank, in these of its layers."""

    model: Decoder
    layers: Sequence[int]
    ids: Int[Array, "B S"]
    real: Bool[Array, "B S"]

    @classmethod
    def on(cls, model: Decoder, layers: Sequence[int], rows: Rows) -> "Search":
        config = model.config
        given = [list(row) for row in rows]
        prompts = pad(given, config.vocabulary, config.max_position, smallest=8)
        ids = jnp.asarray(prompts.token_ids)
        real = np.arange(ids.shape[1])[None] < prompts.lengths[:, None]
        return cls(model, layers, ids, jnp.asarray(real))

    def __call__(
        self, kept: int, step: int, least: int, progress: Progress | None = None
    ) -> dict[int, LowRankSizes]:
        """Ranks of which a head keeps `kept` numbers, in the mean over the layers.

        Each is `least` at least, or half of `kept` where that is less.
        """
        config = self.model.config
        K, H = config.kv_heads, config.head_dim
        least = min(least, kept // 2)
        ranks = {i: np.full((K, 2), H) for i in range(config.layers)}
        over = begun = (2 * H - kept) * len(self.layers)
        while over > 0:
            if progress is not None:
                progress(begun - over, begun, "ranks")
            inputs = self._inputs(ranks)
            tried = []
            for i in self.layers:
                size = min(step, over, int(ranks[i].sum(axis=1)[0]) - 2 * least)
                if size > 0:
                    tried.append(self._lower(i, ranks, inputs, size, least))
            tried.sort(key=lambda one: one[0])
            for _, i, lower in tried[: max(1, len(tried) // 2)]:
                given = int((ranks[i] - lower).sum(axis=1)[0])
                if given > over:  # the last round's steps are of what was left then
                    break
                ranks[i], over = lower, over - given
        return {i: _sizes(ranks[i]) for i in self.layers}

    def _lower(self, i, ranks, inputs, size, least) -> tuple[float, int, Ranks]:
        """One layer's ranks after a step, and what all heads' steps move together.

        Each head gives of what moves less by itself; or all of their keys, or of their
        values, where that moves less together.
        """
        heads = range(len(ranks[i]))
        own = [self._least_moving(i, h, ranks, inputs, size, least) for h in heads]
        tried = []
        for parts in {tuple(own), *((part,) * len(own) for part in (KEY, VALUE))}:
            lower = _given(ranks[i], parts, size, least)
            after = self._last(i, ranks | {i: lower}, inputs[i])
            tried.append((float(_moved(inputs[-1], after, self.real)), i, lower))
        return min(tried, key=lambda one: one[0])

    def _least_moving(self, i, head, ranks, inputs, size, least) -> int:
        """Whether a head's key or its value moves less when it gives up a step."""
        moved = []
        for part in (KEY, VALUE):
            if ranks[i][head, part] - size < least:
                moved.append(np.inf)
                continue
            one = ranks[i].copy()
            one[head, part] -= size
            after = self._last(i, ranks | {i: one}, inputs[i])
            moved.append(float(_moved(inputs[-1], after, self.real)))
        return int(np.argmin(moved))

    def _inputs(self, ranks: dict[int, Ranks]) -> list[Array]:
        """What enters each layer, and the last hidden states."""
        found = [self.model.embed(self.ids).astype(jnp.float32)]
        for i in range(len(self.model.layers)):
            found.append(self._through(i, ranks, found[-1]))
        return [*found[:-1], in_fp32(self.model.norm)(found[-1])]

    def _last(self, first: int, ranks: dict[int, Ranks], x: Array) -> Array:
        for i in range(first, len(self.model.layers)):
            x = self._through(i, ranks, x)
        return in_fp32(self.model.norm)(x)

    def _through(self, i: int, ranks: dict[int, Ranks], x: Array) -> Array:
        layer = self.model.layers[i]
        if i not in self.layers:
            return _as_it_is(layer, x)
        return through(layer, x, *jnp.asarray(ranks[i].T, jnp.int32))


def _sizes(ranks: Ranks) -> LowRankSizes:
    keys, values = (tuple(map(int, column)) for column in ranks.T)
    return LowRankSizes(keys, values)


def _given(ranks: Ranks, parts: Sequence[int], size: int, least: int) -> Ranks:
    """A layer's ranks after a step of each head's part, and of its other beyond that.

    No part gives up what is of the least.
    """
    lower = ranks.copy()
    for head, part in enumerate(parts):
        first = min(size, int(lower[head, part]) - least)
        lower[head, part] -= first
        lower[head, 1 - part] -= size - first
    return lower


@jax.jit
def _as_it_is(layer, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    position = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return in_fp32(layer)(x, position)


@jax.jit
def _moved(
    before: Float[Array, "B S D"],
    after: Float[Array, "B S D"],
    real: Bool[Array, "B S"],
) -> Float[Array, ""]:
    def norm(x):
        return jnp.linalg.norm(jnp.where(real[..., None], x.astype(jnp.float32), 0))

    return norm(after - before) / norm(before)
