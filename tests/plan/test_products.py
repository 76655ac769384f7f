"""FLOPs of products: loops, recomputation, devices and kernels counted in full."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxkv.attention.splash import splash_attention
from jaxkv.mesh import make_mesh
from jaxkv.plan.products import kernel_flops, product_flops

W = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 16**3


def test_a_loop_counts_as_often_as_it_turns():
    def f(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), w, length=7)[0]

    assert product_flops(jax.jit(f).trace(W).jaxpr) == 7 * ONE


def test_what_is_computed_again_counts_again():
    def loss(w):
        return jax.checkpoint(lambda w: jnp.sin(jnp.sin(w @ w) @ w))(w).sum()

    jaxpr = jax.jit(jax.grad(loss)).trace(W).jaxpr
    assert product_flops(jaxpr) == (2 + 2 + 4) * ONE


def test_each_device_of_a_mesh_counts():
    with jax.set_mesh(make_mesh("data=8")):
        f = jax.shard_map(
            lambda x: x @ x.T,
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        jaxpr = jax.jit(f).trace(jax.ShapeDtypeStruct((8, 16), jnp.float32)).jaxpr
    assert product_flops(jaxpr) == 8 * 2 * 16


def test_a_causal_kernels_blocks_below_the_diagonal():
    """Four blocks of queries by four of keys: 10 of 16 are at all looked at."""
    q = jax.ShapeDtypeStruct((1, 4096, 2, 128), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 4096, 1, 128), jnp.bfloat16)
    jaxpr = jax.jit(splash_attention).trace(q, k, k).jaxpr
    assert (
        kernel_flops(jaxpr) == product_flops(jaxpr) == 4 * 2 * 4096**2 * 128 * 10 / 16
    )
