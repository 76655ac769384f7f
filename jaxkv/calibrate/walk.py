"""A model, layer by layer over whole sequences, with a look at each layer's attention.

One row's queries, keys and values exist at a time, and what the look takes of them.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxkv.models.decoder import Decoder, Layer

Look = Callable[[Array, Array], PyTree[Array]]  # (q [S, N, H], k [S, K, H]), rotated


def walk(
    model: Decoder, token_ids: Int[Array, "B S"], look: Look
) -> Iterator[PyTree[Array]]:
    """What `look` takes of every row, [B, ...], layer after layer.

    Rows are padded to the right; a look must leave the padding out by itself. It is
    static: give the same object for the same program. Raises ValueError for a model
    whose layers cache other than as many kv heads' rotated keys.
    """
    absorbed = all(s.absorbed for s in model.config.attention if s is not None)
    if not (model.config.alike and absorbed):
        raise ValueError(
            "Calibrations are of what queries ask of kv heads' keys, as many in each "
            "layer, and a layer of this model caches one row for all heads, other "
            "heads, or keys that are not rotated; use a method without calibration."
        )
    x = model.embed(token_ids)
    for layer in model.layers:
        x, found = _see(layer, x, look=look)
        yield found


@partial(jax.jit, static_argnames="look", donate_argnames="x")
def _see(
    layer: Layer, x: Float[Array, "B S D"], *, look: Look
) -> tuple[Float[Array, "B S D"], PyTree[Array]]:
    """The hidden states after a layer, and the look at it."""
    position = jnp.arange(x.shape[1], dtype=jnp.int32)[None]

    def row(x_SD):
        x_1SD = x_SD[None]
        attention = layer.attention
        q, k, v = attention.entries(layer.attention_norm(x_1SD), position)
        heads, _ = attention.attend_prompt(q, k, v)
        x_1SD = x_1SD + attention.output(heads)
        x_1SD = x_1SD + layer.mlp(layer.mlp_norm(x_1SD))
        return x_1SD[0], look(attention.asked(q)[0], k[0])

    return jax.lax.map(row, x)
