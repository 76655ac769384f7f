"""latent_decode on Hopper: lowered everywhere; there it equals its definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import versions
from pallas_kernels.dispatch import target
from pallas_kernels.latent_decode import mosaic_gpu, op, reference
from pallas_kernels.latent_decode.specs import SPECS, Rows, Spec
from tests.pallas_kernels.cuda import KERNEL, lowered
from tests.pallas_kernels.latent_decode.made import make
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
)

HALF = jnp.bfloat16
EVERYTHING = Rows(
    "everything",
    B=2,
    J=1,
    R=3,
    T=3,
    G=24,
    H=256,
    P=128,
    lengths=(0, 128, 500),
    window=50,
    soft_cap=20.0,
    bias=True,
)
MORE = (
    Spec(
        Rows("many", B=40, J=1, R=2, T=1, G=16, H=576, P=64, lengths=(640, 65)),
        value_dim=512,
    ),
    Spec(
        Rows("large pages", B=3, J=1, R=1, T=1, G=128, H=576, P=256, lengths=(2000,)),
        value_dim=512,
    ),
    Spec(
        Rows("32 heads", B=5, J=1, R=1, T=1, G=32, H=576, P=64, lengths=(200,)),
        value_dim=512,
    ),
    Spec(EVERYTHING, value_dim=192),
    Spec(replace(EVERYTHING, name="everything, few queries", G=5), value_dim=192),
)
ODD = Spec(
    Rows("odd", B=2, J=1, R=3, T=1, G=4, H=96, P=64, lengths=(65, 65, 65)),
    value_dim=64,
)

lowers = pytest.mark.skipif(not versions.MOSAIC_GPU, reason="needs jax 0.11")
runs = pytest.mark.skipif(target() != "sm90", reason="needs a Hopper GPU")


@lowers
@pytest.mark.parametrize("logits", (False, True))
@pytest.mark.parametrize("spec", SPECS + MORE, ids=lambda spec: spec.name)
def test_lowers_for_hopper(spec, logits):
    (call,) = spec.calls(HALF)
    options = call.options | {"return_logits": logits}
    assert KERNEL in lowered(replace(call, options=options))


@lowers
def test_what_the_kernel_does_not_take_goes_through_xla():
    spec = SPECS[2]
    (call,) = replace(spec, rows=replace(spec.rows, P=32)).calls(HALF)
    assert KERNEL not in lowered(call)
    (call,) = spec.calls(jnp.float32)
    assert KERNEL not in lowered(call)


@pytest.mark.parametrize(
    "changes, value_dim, dtype, said",
    [
        ({}, 64, jnp.float32, "16-bit dtype, not float32"),
        ({"H": 80}, 64, HALF, "80 numbers of a latent are no multiple of 32"),
        ({}, 32, HALF, "value_dim 32 is no multiple of 64"),
        ({"P": 32}, 64, HALF, "Pages of 32 slots are no multiple of 64"),
        ({"T": 8, "G": 65}, 64, HALF, "T x G = 8 x 65 queries a row exceed 512"),
    ],
)
def test_says_what_it_does_not_take(changes, value_dim, dtype, said):
    spec = replace(SPECS[2], rows=replace(SPECS[2].rows, **changes))
    arrays, _ = make(spec, dtype=dtype)
    with pytest.raises(ValueError, match=said):
        mosaic_gpu.check(arrays["q"], arrays["entry"], value_dim)


def test_stages_fill_the_memory():
    assert [mosaic_gpu.stages_of(n) for n in (576, 320, 96)] == [2, 4, 8]
    held = [mosaic_gpu.held(n, 16, 128) for n in (576, 320, 96)]
    assert held == [(2, 2), (2, 4), (2, 8)]
    assert mosaic_gpu.held(576, 32, 128) == (1, 2)
    assert mosaic_gpu.held(576, 32, 4096)[1] < 2  # so many rows are not held


@runs
@pytest.mark.parametrize("spec", SPECS + MORE, ids=lambda spec: spec.name)
def test_equals_the_definition(spec):
    arrays, static = make(spec, dtype=HALF)
    decode = jax.jit(partial(op.latent_decode, **static, return_logits=True))
    out, lse, logits = decode(**arrays)
    theirs = definition(arrays, static)
    assert_out_and_lse((out, lse), theirs, HALF)
    wanted = by_page(theirs[2], arrays["table"], spec.rows.pages)
    np.testing.assert_allclose(logits, wanted, rtol=5e-5, atol=5e-5)


@runs
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 63, 64, 65]), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_odd_lengths_and_shared_pages(lengths, seed):
    arrays, static = make(ODD, np.reshape(lengths, (2, 1, 3)), HALF, seed)
    decode = jax.jit(partial(mosaic_gpu.latent_decode, **static))
    assert_out_and_lse(decode(**by_table(arrays)), definition(arrays, static), HALF)
    # The last row reads the first row's pages, too.
    shared = {
        name: arrays[name].at[:, :, -1].set(arrays[name][:, :, 0])
        for name in ("table", "length")
    }
    arrays = arrays | shared
    assert_out_and_lse(decode(**by_table(arrays)), definition(arrays, static), HALF)


def definition(arrays, static):
    with jax.default_matmul_precision("highest"):
        return reference.latent_decode(**by_table(arrays), **static)
