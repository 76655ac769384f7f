"""Which ranks hurt least: a greedy search to a byte budget (MatryoshkaKV).

MatryoshkaKV, arXiv 2410.14731, section 3.3. A round measures, for each layer, kv head
and its key or value, how far the last hidden states move when that rank goes down by a
step:

    e = ||h' - h|| / ||h||        over all tokens, h with the ranks so far

Here the heads of a layer store equally many numbers, so that a layer gives up a step of
every head, each of its key or of its value, whichever moves less; e of all of them
together is then measured, and the half of the layers that move least give way. Rounds
go on until the layers hold their budget together, which the last of them meets exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxkv.convert.base import Progress, Rows
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
        self, kept: int, step: int, progress: Progress | None = None
    ) -> dict[int, LowRankSizes]:
        """Ranks of which a head keeps `kept` numbers, in the mean over the layers."""
        config = self.model.config
        K, H = config.kv_heads, config.head_dim
        ranks = {i: np.full((K, 2), H) for i in range(config.layers)}
        over = begun = (2 * H - kept) * len(self.layers)
        while over > 0:
            if progress is not None:
                progress(begun - over, begun, "ranks")
            inputs = self._inputs(ranks)
            tried = []
            for i in self.layers:
                size = min(step, over, int(ranks[i].sum(axis=1)[0]) - 2)
                if size > 0:
                    tried.append(self._lower(i, ranks, inputs, size))
            tried.sort(key=lambda one: one[0])
            for _, i, lower in tried[: max(1, len(tried) // 2)]:
                given = int((ranks[i] - lower).sum(axis=1)[0])
                if given > over:  # the last round's steps are of what was left then
                    break
                ranks[i], over = lower, over - given
        return {i: _sizes(ranks[i]) for i in self.layers}

    def _lower(self, i, ranks, inputs, size) -> tuple[float, int, Ranks]:
        """One layer's ranks after a step, and what all heads' steps move together."""
        before = inputs[-1]
        lower = ranks[i].copy()
        for head in range(len(lower)):
            parts = [p for p in (KEY, VALUE) if ranks[i][head, p] > size]
            if not parts:  # the step is of both, and leaves one number of each
                lower[head] = _shared(ranks[i][head], size)
                continue
            moved = []
            for part in parts:
                one = ranks[i].copy()
                one[head, part] -= size
                after = self._last(i, ranks | {i: one}, inputs[i])
                moved.append(float(_moved(before, after, self.real)))
            lower[head, parts[int(np.argmin(moved))]] -= size
        after = self._last(i, ranks | {i: lower}, inputs[i])
        return float(_moved(before, after, self.real)), i, lower

    def _inputs(self, ranks: dict[int, Ranks]) -> list[Array]:
        """What enters each layer, and the last hidden states."""
        found = [self.model.embed(self.ids)]
        for i in range(len(self.model.layers)):
            found.append(self._through(i, ranks, found[-1]))
        return [*found[:-1], self.model.norm(found[-1])]

    def _last(self, first: int, ranks: dict[int, Ranks], x: Array) -> Array:
        for i in range(first, len(self.model.layers)):
            x = self._through(i, ranks, x)
        return self.model.norm(x)

    def _through(self, i: int, ranks: dict[int, Ranks], x: Array) -> Array:
        layer = self.model.layers[i]
        if i not in self.layers:
            return _as_it_is(layer, x)
        return through(layer, x, *jnp.asarray(ranks[i].T, jnp.int32))


def _sizes(ranks: Ranks) -> LowRankSizes:
    keys, values = (tuple(map(int, column)) for column in ranks.T)
    return LowRankSizes(keys, values)


def _shared(ranks: Int[np.ndarray, "2"], size: int) -> Int[np.ndarray, "2"]:
    """A head's ranks after a step that neither its key nor its value has alone."""
    of_key = min(size, int(ranks[KEY]) - 1)
    return ranks - np.array([of_key, size - of_key])


@jax.jit
def _as_it_is(layer, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    position = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return layer(x, position)


@jax.jit
def _moved(
    before: Float[Array, "B S D"],
    after: Float[Array, "B S D"],
    real: Bool[Array, "B S"],
) -> Float[Array, ""]:
    def norm(x):
        return jnp.linalg.norm(jnp.where(real[..., None], x.astype(jnp.float32), 0))

    return norm(after - before) / norm(before)
