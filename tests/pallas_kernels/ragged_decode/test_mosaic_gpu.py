"""ragged_decode on Hopper: lowered everywhere; there it equals its definition."""

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
from pallas_kernels.ragged_decode import mosaic_gpu, op, reference
from pallas_kernels.ragged_decode.specs import SPECS, Spec
from tests.pallas_kernels.cuda import KERNEL, lowered
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
    make,
)

HALF = jnp.bfloat16
MORE = (
    Spec("rows", B=64, J=1, R=8, T=1, G=4, H=64, P=64, lengths=(64, 1, 0, 65) * 2),
    Spec("many", B=16, J=1, R=8, T=1, G=4, H=128, P=64, lengths=(64, 640, 0, 1) * 2),
    Spec("eight", B=1, J=2, R=2, T=8, G=8, H=128, P=64, lengths=(65, 300)),
    Spec(
        "large pages", B=3, J=1, R=4, T=1, G=4, H=128, P=256, lengths=(0, 257, 256, 9)
    ),
    Spec(
        "everything",
        B=2,
        J=1,
        R=3,
        T=3,
        G=2,
        H=256,
        P=128,
        lengths=(0, 128, 500),
        window=50,
        soft_cap=20.0,
        bias=True,
    ),
)
ODD = Spec("odd", B=2, J=1, R=3, T=1, G=4, H=64, P=64, lengths=(65, 65, 65))

lowers = pytest.mark.skipif(not versions.MOSAIC_GPU, reason="needs jax 0.11")
runs = pytest.mark.skipif(target() != "sm90", reason="needs a Hopper GPU")


@lowers
@pytest.mark.parametrize("spec", SPECS + MORE, ids=lambda spec: spec.name)
def test_lowers_for_hopper(spec):
    (call,) = spec.calls(HALF)
    assert KERNEL in lowered(call)


@lowers
def test_what_the_kernel_does_not_take_goes_through_xla():
    (call,) = replace(SPECS[2], P=32).calls(HALF)
    assert KERNEL not in lowered(call)
    (call,) = SPECS[2].calls(jnp.float32)
    assert KERNEL not in lowered(call)


@pytest.mark.parametrize(
    "changes, dtype, said",
    [
        ({}, jnp.float32, "16-bit dtype, not float32"),
        ({"H": 80}, HALF, "head_dim 80 is not one of 64, 96, 128, 256"),
        ({"P": 32}, HALF, "Pages of 32 slots are no multiple of 64"),
        (
            {"T": 8, "G": 9},
            HALF,
            "T x G = 8 x 9 queries a kv head exceed 64 at head_dim 128",
        ),
    ],
)
def test_says_what_it_does_not_take(changes, dtype, said):
    arrays, _ = make(replace(SPECS[2], **changes), dtype=dtype)
    with pytest.raises(ValueError, match=said):
        mosaic_gpu.check(arrays["q"], arrays["entry"])


def test_tiles_stand_row_after_row():
    begin = mosaic_gpu.starts(jnp.array([0, 1, 64, 65, 0]))
    np.testing.assert_array_equal(begin, [0, 0, 1, 2, 4, *[4] * 123])


@runs
@pytest.mark.parametrize("spec", SPECS + MORE, ids=lambda spec: spec.name)
def test_equals_the_definition(spec):
    arrays, static = make(spec, dtype=HALF)
    decode = jax.jit(partial(op.ragged_decode, **static, return_logits=True))
    out, lse, logits = decode(**arrays)
    theirs = definition(arrays, static)
    assert_out_and_lse((out, lse), theirs, HALF)
    wanted = by_page(theirs[2], arrays["table"], spec.pages)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


@runs
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 63, 64, 65]), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_odd_lengths_and_shared_pages(lengths, seed):
    arrays, static = make(ODD, np.reshape(lengths, (2, 1, 3)), HALF, seed)
    decode = jax.jit(partial(mosaic_gpu.ragged_decode, **static))
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
        return reference.ragged_decode(**by_table(arrays), **static)
