"""ragged_decode's TPU kernel equals its definition, interpreted on a CPU.

Copies arrive as late as they may, memory that was not written holds NaN, and races are
told. A hang ends the process.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import compile_for, fits
from pallas_kernels.ragged_decode import mosaic_tpu, op, reference, xla
from pallas_kernels.ragged_decode.mosaic_tpu import Sizes
from pallas_kernels.ragged_decode.specs import SPECS, Spec
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
    make,
)

pytestmark = pytest.mark.usefixtures("meant_for_a_tpu")
ODD = Spec("odd", B=2, J=1, R=3, T=1, G=2, H=16, P=8, lengths=(9, 9, 9))
CHIPS = (
    Sizes(step=4 * 128 * 128, buffers=2),
    Sizes(step=8 * 128 * 128, buffers=3, product=256, parts=2),
)
SMALL = Sizes(step=3 * 8 * 128 * 4, buffers=2, parts=2)  # three pages of ODD


def ragged_decode(arrays, tiles=SMALL, races=False, **static):
    interpret = pltpu.InterpretParams(detect_races=races, uninitialized_memory="nan")
    return mosaic_tpu.ragged_decode(
        **arrays, **static, tiles=tiles, interpret=interpret
    )


def of_live(logits, arrays, window):
    """Logits, -inf where the op says that nothing is seen."""
    names = ("owner", "position", "q_position")
    return jnp.where(xla.live(*(arrays[n] for n in names), window), logits, -jnp.inf)


@pytest.mark.parametrize("number", range(len(SPECS)), ids=[s.name for s in SPECS])
def test_equals_the_definition(number, capfd):
    spec = SPECS[number]
    arrays, static = make(spec)
    decode = partial(
        ragged_decode, **static, races=True, tiles=CHIPS[number % 2], return_logits=True
    )
    out, lse, logits = jax.jit(decode)(arrays)
    theirs = reference.ragged_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs)
    wanted = by_page(theirs[2], arrays["table"], spec.pages)
    logits = of_live(logits, arrays, spec.window)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("spec", SPECS[1:3], ids=lambda spec: spec.name)
def test_half_precision(spec):
    arrays, static = make(spec, dtype=jnp.bfloat16)
    out, lse, logits = jax.jit(partial(ragged_decode, **static, tiles=CHIPS[0]))(arrays)
    assert (out.dtype, lse.dtype, logits) == (jnp.bfloat16, jnp.float32, None)
    theirs = reference.ragged_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs, jnp.bfloat16)


odd_decode = jax.jit(partial(ragged_decode, scale=ODD.H**-0.5))
odd_reference = jax.jit(partial(reference.ragged_decode, scale=ODD.H**-0.5))


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 7, 8, 9]), min_size=6, max_size=6),
    holes=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_odd_pools_on_one_program(lengths, holes, shared, seed):
    """Empty slots below a row's length, a page on two tables, and padding queries."""
    arrays, _ = make(ODD, np.reshape(lengths, (2, 1, 3)), seed=seed)
    if holes:
        slots = np.random.default_rng(seed).random(arrays["position"].shape)
        arrays["position"] = jnp.where(slots < 0.3, -1, arrays["position"])
        arrays["q_position"] = arrays["q_position"].at[0].set(-1)
    if shared:
        for name in ("table", "length"):
            arrays[name] = arrays[name].at[:, :, 1].set(arrays[name][:, :, 0])
    ours = odd_decode(arrays)
    assert_out_and_lse(ours, odd_reference(**by_table(arrays)))
    assert odd_decode._cache_size() == 1
    empty = np.reshape(arrays["length"], -1) == 0
    assert (np.asarray(ours[0]).reshape(6, -1)[empty] == 0).all()


def test_tables_of_several_calls():
    spec = replace(ODD, B=1)
    arrays, static = make(spec, np.array([[[9, 0, 8]]]))
    tiles = Sizes(step=8 * 128 * 4, buffers=2, smem=2 * 4 * spec.table)  # two rows
    decode = partial(ragged_decode, **static, return_logits=True)
    out, lse, logits = jax.jit(partial(decode, tiles=tiles))(arrays)
    theirs = reference.ragged_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs)
    wanted = by_page(theirs[2], arrays["table"], spec.pages)
    logits = of_live(logits, arrays, None)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="store larger pages"):
        decode(arrays, tiles=replace(tiles, smem=4))


def test_through_the_op_gradients_are_those_of_the_definition(monkeypatch):
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    weight = jax.random.normal(jax.random.key(0), arrays["q"].shape)
    interpreted = partial(
        mosaic_tpu.ragged_decode, tiles=SMALL, interpret=pltpu.InterpretParams()
    )
    monkeypatch.setattr(op, "_mosaic_tpu", interpreted)
    monkeypatch.setattr(op, "fits", lambda meant, *_: meant == "tpu")
    monkeypatch.setattr(op, "by_platform", lambda xla, sm90, tpu: tpu)

    def definition(owner, **arrays):
        return reference.ragged_decode(**arrays)

    def loss(decode, q, entry):
        out, lse, _ = decode(**arrays | {"q": q, "entry": entry}, **static)
        seen = jnp.isfinite(lse)
        return (out * weight).sum() + jnp.where(seen, jnp.where(seen, lse, 0), 0).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)
    value, ours = gradient(op.ragged_decode, arrays["q"], arrays["entry"])
    wanted, theirs = gradient(definition, arrays["q"], arrays["entry"])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs
    )


def test_what_it_cannot_take_is_said():
    arrays, static = make(ODD)
    many = {
        "q": jnp.tile(arrays["q"], (1, 1, 1, 33, 1, 1)),
        "q_position": jnp.tile(arrays["q_position"], (1, 33)),
    }
    half = jax.tree.map(lambda x: x.astype(jnp.float16), arrays["entry"])
    with pytest.raises(ValueError, match="33 x 2 queries of a row exceed 64"):
        ragged_decode(arrays | many, **static)
    with pytest.raises(ValueError, match="not float32 and float16; use xla"):
        ragged_decode(arrays | {"entry": half}, **static)
    assert fits("tpu", mosaic_tpu.__name__, arrays["q"], arrays["entry"])
    assert not fits("tpu", mosaic_tpu.__name__, many["q"], arrays["entry"])
    with compile_for("cpu"):
        assert not fits("tpu", mosaic_tpu.__name__, arrays["q"], arrays["entry"])
