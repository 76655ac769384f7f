"""latent_decode through XLA equals its definition, whatever the unused slots hold."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import compile_for
from pallas_kernels.latent_decode import reference, xla
from pallas_kernels.latent_decode.specs import SPECS, Rows, Spec
from tests.pallas_kernels.latent_decode.made import make
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
)

ODD = Spec(
    Rows("odd", B=2, J=1, R=3, T=1, G=2, H=24, P=8, lengths=(9, 9, 9)), value_dim=16
)


def latent_decode(arrays, **static):
    of_pages = {n: x for n, x in arrays.items() if n not in ("table", "length")}
    return xla.latent_decode(**of_pages, **static)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_equals_the_definition(spec):
    arrays, static = make(spec)
    decode = jax.jit(partial(latent_decode, **static, return_logits=True))
    out, lse, logits = decode(arrays)
    theirs = reference.latent_decode(**by_table(arrays), **static)
    assert out.shape[-1] == spec.value_dim
    assert_out_and_lse((out, lse), theirs)
    wanted = by_page(theirs[2], arrays["table"], spec.rows.pages)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.name)
def test_half_precision(spec):
    arrays, static = make(spec, dtype=jnp.bfloat16)
    out, lse, logits = jax.jit(partial(latent_decode, **static))(arrays)
    assert (out.dtype, lse.dtype, logits) == (jnp.bfloat16, jnp.float32, None)
    theirs = reference.latent_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs, jnp.bfloat16)


def test_a_tpus_pool_gives_the_same():
    arrays, static = make(SPECS[2])
    with compile_for("tpu"):
        padded, _ = make(SPECS[2])
    assert padded["entry"].row.shape[-1] == 128
    decode = jax.jit(partial(latent_decode, **static))
    assert_out_and_lse(decode(padded), decode(arrays))


def test_in_chunks_of_a_pool():
    arrays, static = make(replace(ODD, rows=replace(ODD.rows, spare=0)))
    decode = jax.jit(partial(latent_decode, **static), static_argnames="chunk")
    assert_out_and_lse(decode(arrays, chunk=2), decode(arrays))


def test_gradients_equal_those_of_the_definition():
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    B, J, R, T, G, _ = arrays["q"].shape
    weight = jax.random.normal(jax.random.key(0), (B, J, R, T, G, ODD.value_dim))

    def definition(arrays, **static):
        return reference.latent_decode(**by_table(arrays), **static)

    def loss(decode, q, entry):
        out, *_ = decode(arrays | {"q": q, "entry": entry}, **static)
        return (out * weight).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    ours = gradient(latent_decode, arrays["q"], arrays["entry"])
    theirs = gradient(definition, arrays["q"], arrays["entry"])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs
    )
    dead = (arrays["owner"] < 0)[..., None] | (arrays["position"] < 0)
    assert (np.asarray(ours[1].row)[np.asarray(dead)] == 0).all()
