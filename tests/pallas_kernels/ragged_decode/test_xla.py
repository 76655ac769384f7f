"""ragged_decode through XLA equals its definition, whatever the unused slots hold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.ragged_decode import reference, xla
from pallas_kernels.ragged_decode.specs import SPECS, Spec
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
    make,
)

ODD = Spec("odd", B=2, J=1, R=3, T=1, G=2, H=16, P=8, lengths=(9, 9, 9))


def by_owner(arrays):
    """The arguments of the XLA path, which tells a row's pages by their owner."""
    return {name: x for name, x in arrays.items() if name not in ("table", "length")}


def ragged_decode(arrays, **static):
    return xla.ragged_decode(**by_owner(arrays), **static)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_equals_the_definition(spec):
    arrays, static = make(spec)
    decode = jax.jit(partial(ragged_decode, **static, return_logits=True))
    out, lse, logits = decode(arrays)
    theirs = reference.ragged_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs)
    wanted = by_page(theirs[2], arrays["table"], spec.pages)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("spec", SPECS[1:3], ids=lambda spec: spec.name)
def test_half_precision(spec):
    arrays, static = make(spec, dtype=jnp.bfloat16)
    out, lse, logits = jax.jit(partial(ragged_decode, **static))(arrays)
    assert (out.dtype, lse.dtype, logits) == (jnp.bfloat16, jnp.float32, None)
    theirs = reference.ragged_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs, jnp.bfloat16)


def test_a_row_without_slots_gives_zero_and_minus_infinity():
    arrays, static = make(SPECS[1])
    out, lse, _ = jax.jit(partial(ragged_decode, **static))(arrays)
    assert SPECS[1].lengths[0] == 0
    assert (np.asarray(out[:, :, 0]) == 0).all()
    assert (np.asarray(lse[:, :, 0]) == -np.inf).all()


odd_decode = jax.jit(partial(ragged_decode, scale=ODD.H**-0.5))
odd_reference = jax.jit(partial(reference.ragged_decode, scale=ODD.H**-0.5))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 7, 8, 9]), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_odd_lengths_on_one_program(lengths, seed):
    arrays, _ = make(ODD, np.reshape(lengths, (2, 1, 3)), seed=seed)
    assert_out_and_lse(odd_decode(arrays), odd_reference(**by_table(arrays)))
    assert odd_decode._cache_size() == 1


def test_two_halves_merge_into_the_whole():
    arrays, static = make(ODD)
    whole, lse, _ = odd_decode(arrays)
    odd_page = jnp.arange(ODD.pages)[None, None] % 2 == 1
    parts = [
        odd_decode(arrays | {"owner": jnp.where(mine, arrays["owner"], -1)})
        for mine in (odd_page, ~odd_page)
    ]
    merged_lse = jnp.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * jnp.exp(part - merged_lse)[..., None] for out, part, _ in parts)
    assert_out_and_lse((merged, merged_lse), (whole, lse))


def test_gradients_equal_those_of_the_definition():
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    weight = jax.random.normal(jax.random.key(0), arrays["q"].shape)

    def definition(arrays, **static):
        return reference.ragged_decode(**by_table(arrays), **static)

    def loss(decode, q, entry):
        out, *_ = decode(arrays | {"q": q, "entry": entry}, **static)
        return (out * weight).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    ours = gradient(ragged_decode, arrays["q"], arrays["entry"])
    theirs = gradient(definition, arrays["q"], arrays["entry"])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs
    )
    dead = (arrays["owner"] < 0)[..., None] | (arrays["position"] < 0)
    for part in ours[1]:
        assert (np.asarray(part)[np.asarray(dead)] == 0).all()
