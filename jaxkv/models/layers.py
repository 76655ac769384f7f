"""The small layers every decoder shares: RMS norm, token embedding, gated MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.mesh import summed

# Above this vocabulary a one-hot product costs more than a scattered gradient.
ONE_HOT_VOCABULARY = 8192


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in fp32."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
        return jnp.einsum("...d,d->...d", normed, self.scale[...].astype(x.dtype))


class GatedMLP(nnx.Module):
    """silu(x W_gate) * (x W_up) W_down; gate and up are one matrix [D, 2, F]."""

    def __init__(
        self, width: int, inner: int, scale: float, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        normal = jax.random.normal
        self.gate_up = nnx.Param(
            normal(rngs.params(), (width, 2, inner), dtype) * scale
        )
        self.down = nnx.Param(normal(rngs.params(), (inner, width), dtype) * scale)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        both = jnp.einsum("...d,dif->...if", x, self.gate_up[...])
        gate, up = jnp.split(both, 2, axis=-2)
        inner = (jax.nn.silu(gate) * up).squeeze(-2)
        return jnp.einsum(
            "...f,fd->...d", inner, self.down[...], out_sharding=summed(inner)
        )


@jax.custom_vjp
def lookup(
    table: Float[Array, "V D"], token_ids: Int[Array, "*batch"]
) -> Float[Array, "*batch D"]:
    """Rows of the embedding table.

    For a small vocabulary the table's gradient is a one-hot product: scattering many
    tokens into a few hundred rows serialises on a GPU.
    """
    return jnp.take(table, token_ids, axis=0)


def _lookup_forward(table, token_ids):
    return lookup(table, token_ids), (token_ids, table.shape[0])


def _lookup_backward(residual, gradient):
    token_ids, vocabulary = residual
    flat = gradient.reshape(-1, gradient.shape[-1])
    ids = token_ids.reshape(-1)
    if vocabulary <= ONE_HOT_VOCABULARY:
        one_hot = jax.nn.one_hot(ids, vocabulary, dtype=flat.dtype)
        table_gradient = jnp.einsum("tv,td->vd", one_hot, flat)
    else:
        zeros = jnp.zeros((vocabulary, flat.shape[-1]), flat.dtype)
        table_gradient = zeros.at[ids].add(flat)
    return table_gradient.astype(gradient.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)
