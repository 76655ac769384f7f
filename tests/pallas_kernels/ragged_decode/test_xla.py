"""ragged_decode through XLA equals its definition, whatever the unused slots hold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.layout import Entry
from pallas_kernels.ragged_decode import ragged_decode, reference
from pallas_kernels.ragged_decode.specs import SPECS, Spec

GARBAGE = 1e4  # finite: NaN would leak through 0 * NaN
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2}  # of out and lse, absolute
ODD = Spec("odd", B=2, J=1, R=3, T=1, G=2, H=16, P=8, lengths=(9, 9, 9))


def make(spec, lengths=None, dtype=jnp.float32, seed=0):
    """A pool with pages in no order, tokens in no order, garbage where nothing lives.

    lengths [B, J, R]; the queries stand at the newest positions.
    """
    rng = np.random.default_rng(seed)
    B, J, R, P, pages = spec.B, spec.J, spec.R, spec.P, spec.pages
    if lengths is None:
        lengths = np.broadcast_to(spec.lengths, (B, J, R))
    newest = max(int(np.max(lengths)), spec.T)
    owner = np.full((B, J, pages), -1, np.int32)
    position = np.full((B, J, pages, P), -1, np.int32)
    for b, j in np.ndindex(B, J):
        free = list(rng.permutation(pages))
        for r in range(R):
            left = rng.permutation(newest)[: lengths[b, j, r]]
            while len(left):
                page, (now, left) = free.pop(), (left[:P], left[P:])
                owner[b, j, page] = r
                position[b, j, page, rng.permutation(P)[: len(now)]] = now
        # A free page may hold an earlier owner's positions.
        position[b, j, free] = rng.integers(0, newest, (len(free), P))
    dead = ((owner < 0)[..., None] | (position < 0))[..., None]
    k, v = rng.normal(size=(2, B, J, pages, P, spec.H)).astype(np.float32)
    entry = Entry(*(jnp.asarray(np.where(dead, GARBAGE, x), dtype) for x in (k, v)))
    q = rng.normal(size=(B, J, R, spec.T, spec.G, spec.H)) * 2
    q_position = np.broadcast_to(newest - spec.T + np.arange(spec.T), (B, spec.T))
    bias = rng.normal(size=position.shape).astype(np.float32) if spec.bias else None
    arrays = dict(
        q=jnp.asarray(q, dtype),
        entry=entry,
        owner=jnp.asarray(owner),
        position=jnp.asarray(position),
        q_position=jnp.asarray(q_position, jnp.int32),
        bias=None if bias is None else jnp.asarray(bias),
    )
    static = dict(scale=spec.H**-0.5, soft_cap=spec.soft_cap, window=spec.window)
    return arrays, static


def own_logits(logits, owner):
    """The definition's logits [B J R T G pages P] under each page's owner alone."""
    row = jnp.maximum(owner, 0)[:, :, None, None, None, :, None]
    mine = jnp.take_along_axis(logits, row, axis=2)[:, :, 0]
    return jnp.moveaxis(mine, 4, 2)


def assert_out_and_lse(ours, theirs, dtype=jnp.float32):
    """Equal outputs and log-sum-exps: finite differences within the dtype's table."""
    limit = TOLERANCE[dtype]
    ours, theirs = (
        [np.asarray(x, np.float32) for x in side[:2]] for side in (ours, theirs)
    )
    for mine, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=limit, atol=limit)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_equals_the_definition(spec):
    arrays, static = make(spec)
    out, lse, logits = jax.jit(partial(ragged_decode, **static, return_logits=True))(
        **arrays
    )
    theirs = reference.ragged_decode(**arrays, **static)
    assert_out_and_lse((out, lse), theirs)
    wanted = own_logits(theirs[2], arrays["owner"])
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("spec", SPECS[1:3], ids=lambda spec: spec.name)
def test_half_precision(spec):
    arrays, static = make(spec, dtype=jnp.bfloat16)
    out, lse, logits = jax.jit(partial(ragged_decode, **static))(**arrays)
    assert (out.dtype, lse.dtype, logits) == (jnp.bfloat16, jnp.float32, None)
    theirs = reference.ragged_decode(**arrays, **static)
    assert_out_and_lse((out, lse), theirs, jnp.bfloat16)


def test_a_row_without_slots_gives_zero_and_minus_infinity():
    arrays, static = make(SPECS[1])
    out, lse, _ = jax.jit(partial(ragged_decode, **static))(**arrays)
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
    assert_out_and_lse(odd_decode(**arrays), odd_reference(**arrays))
    assert odd_decode._cache_size() == 1


def test_two_halves_merge_into_the_whole():
    arrays, static = make(ODD)
    whole, lse, _ = odd_decode(**arrays)
    odd_page = jnp.arange(ODD.pages)[None, None] % 2 == 1
    parts = [
        odd_decode(**arrays | {"owner": jnp.where(mine, arrays["owner"], -1)})
        for mine in (odd_page, ~odd_page)
    ]
    merged_lse = jnp.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * jnp.exp(part - merged_lse)[..., None] for out, part, _ in parts)
    assert_out_and_lse((merged, merged_lse), (whole, lse))


def test_gradients_equal_those_of_the_definition():
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    weight = jax.random.normal(jax.random.key(0), arrays["q"].shape)

    def loss(decode, q, entry):
        out, *_ = decode(**arrays | {"q": q, "entry": entry}, **static)
        return (out * weight).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    ours = gradient(ragged_decode, arrays["q"], arrays["entry"])
    theirs = gradient(reference.ragged_decode, arrays["q"], arrays["entry"])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs
    )
    dead = (arrays["owner"] < 0)[..., None] | (arrays["position"] < 0)
    for part in ours[1]:
        assert (np.asarray(part)[np.asarray(dead)] == 0).all()
