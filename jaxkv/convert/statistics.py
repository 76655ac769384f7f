"""Statistics of what a model makes of calibration text, streamed: sums, no activations.

Rows of tokens go through the model one by one, layer after layer. A look at a layer
gives the sums over one row, made on the device in fp32, whatever the model's dtype; the
sums over all rows are kept on the host in fp64. So one row's hidden states and one
layer's queries, keys and values exist at a time, whatever the number of tokens.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxkv.attention.base import Values
from jaxkv.convert.base import Progress, Rows, in_fp32
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.prompts import pad
from jaxkv.train.objectives.vocabulary import by_tokens, logits

LOGITS_BYTES = 2**28  # of a row's, in fp32, that exist at one time


class Looked(NamedTuple):
    """One row of S tokens at one layer; those that are not `real` are padding."""

    layer: Layer
    x: Float[Array, "1 S D"]  # hidden states that enter the layer; all is fp32
    out: Float[Array, "1 S D"]  # and that leave it
    q: Float[Array, "1 S N Q"]  # entries, rotated
    k: Float[Array, "1 S K H"]
    v: Values
    real: Bool[Array, " S"]
    beside: Any  # what was given for the layer, such as another in its place

    def before_rope(
        self,
    ) -> tuple[Float[Array, "1 S N Q"], Float[Array, "1 S K H"], Values]:
        """Queries, keys and values as of position 0, at which RoPE turns nothing."""
        h = self.layer.attention_norm(self.x)
        return self.layer.attention.entries(h, jnp.zeros(h.shape[:2], jnp.int32))


Look = Callable[[Looked], PyTree[Array]]  # sums over the real tokens


@dataclass(frozen=True)
class Statistics:
    """layers: each layer's sums, in fp64; None of one not looked at. loss: the mean
    -log p of the next token, in nats. tokens: that were summed over."""

    layers: list[PyTree[np.ndarray]]
    loss: float
    tokens: int


def statistics(
    model: Decoder,
    rows: Rows,
    look: Look,
    progress: Progress | None = None,
    *,
    layers: Container[int] | None = None,
    beside: Sequence[Any] | None = None,
) -> Statistics:
    """What `look` sums up of each of the layers, None being all, over the rows.

    look is static: give the same object for the same program. beside: arrays, or other
    layers, one for each layer, which the look finds as `at.beside`.

    Raises:
      ValueError: a row is empty, too long for the model or of other ids; or a layer
        gives what is not finite, and the sentence names it.
    """
    config = model.config
    if not len(rows):
        raise ValueError("There are no tokens to calibrate with; give some text.")
    prompts = pad(
        [list(row) for row in rows], config.vocabulary, config.max_position, smallest=8
    )
    totals: list[PyTree[np.ndarray]] = [None] * config.layers
    loss, pairs = 0.0, 0
    for r, (ids_S, length) in enumerate(
        zip(prompts.token_ids, prompts.lengths, strict=True)
    ):
        ids_1S = jnp.asarray(ids_S)[None]
        x_1SD = model.embed(ids_1S).astype(jnp.float32)
        for i, layer in enumerate(model.layers):
            if progress is not None:
                progress(r * config.layers + i, len(rows) * config.layers, "calibrate")
            asked = look if layers is None or i in layers else _nothing
            other = None if beside is None else beside[i]
            x_1SD, found, finite = _see(layer, x_1SD, int(length), other, look=asked)
            _check_finite(bool(finite), i, r)
            totals[i] = _added(totals[i], found)
        loss += float(_loss(model, x_1SD, ids_1S, int(length)))
        pairs += int(length) - 1
    return Statistics(totals, loss / max(pairs, 1), int(prompts.lengths.sum()))


def check_tokens(rows: Rows, width: int, what: str) -> None:
    """Raises ValueError where rows have fewer tokens than a covariance's width."""
    tokens = sum(len(row) for row in rows)
    if tokens < width:
        raise ValueError(
            f"{tokens} calibration tokens are too few for {what}; give {width} at "
            "least."
        )


def gram(x: Float[Array, "S W"], real: Bool[Array, " S"]) -> Float[Array, "W W"]:
    """sum_s x_s x_s^T over real tokens; products in fp32, on any device."""
    x = jnp.where(real[:, None], x, 0).astype(jnp.float32)
    return jnp.einsum("SW,SX->WX", x, x, precision=jax.lax.Precision.HIGHEST)


def _check_finite(finite: bool, layer: int, row: int) -> None:
    if not finite:
        raise ValueError(
            f"Layer {layer} gives values that are not finite for calibration text "
            f"(row {row}); use another checkpoint, or float32."
        )


def _nothing(at: Looked) -> None:
    return None


@partial(jax.jit, static_argnames="look", donate_argnames="x")
def _see(
    layer: Layer,
    x: Float[Array, "1 S D"],
    length: Int[Array, ""],
    beside: Any,
    *,
    look: Look,
) -> tuple[Float[Array, "1 S D"], PyTree[Array], Bool[Array, ""]]:
    """The hidden states after a layer, the look at it, and whether all is finite."""
    layer = in_fp32(layer)
    position_1S = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    real_S = position_1S[0] < length
    attention = layer.attention
    q, k, v = attention.entries(layer.attention_norm(x), position_1S)
    heads, _ = attention.attend_prompt(q, k, v)
    out = x + attention.output(heads)
    out = out + layer.mlp(layer.mlp_norm(out))
    found = look(Looked(layer, x, out, q, k, v, real_S, beside))
    finite = jnp.isfinite(jnp.where(real_S[None, :, None], out, 0)).all()
    for sums in jax.tree.leaves(found):
        finite &= jnp.isfinite(sums).all()
    return out, found, finite


@jax.jit
def _loss(
    model: Decoder,
    x: Float[Array, "1 S D"],
    ids: Int[Array, "1 S"],
    length: Int[Array, ""],
) -> Float[Array, ""]:
    """The sum of -log p over a row's real tokens but the first."""
    table_VD = model.table[...] if model.config.tie_embeddings else model.head[...]
    tokens = in_fp32(model.norm)(x), jnp.roll(ids, -1, axis=1)
    size = table_VD.shape[0]
    loss_1S = by_tokens(_next_token, table_VD, tokens, size, LOGITS_BYTES)
    asked_S = jnp.arange(ids.shape[1], dtype=jnp.int32) < length - 1
    return jnp.where(asked_S, loss_1S[0], 0.0).sum()


def _next_token(table_VD, tokens):
    hidden_BTD, target_BT = tokens
    scores_BTV = logits(table_VD.astype(jnp.float32), hidden_BTD)
    return optax.softmax_cross_entropy_with_integer_labels(scores_BTV, target_BT)


def _added(total: PyTree[np.ndarray], found: PyTree[Array]) -> PyTree[np.ndarray]:
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    if total is None:
        return exact
    return jax.tree.map(lambda *both: np.asarray(np.add(*both)), total, exact)
