"""latent_decode's TPU kernel equals its definition, interpreted on a CPU.

Copies arrive as late as they may, memory that was not written holds NaN, and races are
told. A hang ends the process.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import fits
from pallas_kernels.latent_decode import mosaic_tpu, op, reference
from pallas_kernels.latent_decode.specs import SPECS, Rows, Spec
from pallas_kernels.ragged_decode.mosaic_tpu import Sizes
from pallas_kernels.ragged_decode.op import of_live
from tests.pallas_kernels.latent_decode.made import make
from tests.pallas_kernels.ragged_decode.made import (
    assert_out_and_lse,
    by_page,
    by_table,
)

pytestmark = pytest.mark.usefixtures("meant_for_a_tpu")
ODD = Spec(
    Rows("odd", B=2, J=1, R=3, T=1, G=2, H=24, P=8, lengths=(9, 9, 9)), value_dim=16
)
CHIPS = (
    Sizes(step=2 * 128 * 640, buffers=2),
    Sizes(step=4 * 128 * 640, buffers=3, product=256, parts=2),
)


def latent_decode(arrays, tiles=CHIPS[0], races=False, **static):
    interpret = pltpu.InterpretParams(detect_races=races, uninitialized_memory="nan")
    return mosaic_tpu.latent_decode(
        **arrays, **static, tiles=tiles, interpret=interpret
    )


@pytest.mark.parametrize("number", range(len(SPECS)), ids=[s.name for s in SPECS])
def test_equals_the_definition(number, capfd):
    spec = SPECS[number]
    arrays, static = make(spec)
    decode = partial(
        latent_decode, **static, races=True, tiles=CHIPS[number % 2], return_logits=True
    )
    out, lse, logits = jax.jit(decode)(arrays)
    theirs = reference.latent_decode(**by_table(arrays), **static)
    assert out.shape[-1] == spec.value_dim
    assert_out_and_lse((out, lse), theirs)
    wanted = by_page(theirs[2], arrays["table"], spec.rows.pages)
    logits = of_live(logits, arrays["owner"], spec.rows.window, arrays)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)
    assert "RACE" not in capfd.readouterr().out


def test_half_precision():
    arrays, static = make(SPECS[1], dtype=jnp.bfloat16)
    out, lse, logits = jax.jit(partial(latent_decode, **static))(arrays)
    assert (out.dtype, lse.dtype, logits) == (jnp.bfloat16, jnp.float32, None)
    theirs = reference.latent_decode(**by_table(arrays), **static)
    assert_out_and_lse((out, lse), theirs, jnp.bfloat16)


def test_empty_slots_padding_and_shared_pages():
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    slots = np.random.default_rng(0).random(arrays["position"].shape)
    arrays["position"] = jnp.where(slots < 0.3, -1, arrays["position"])
    arrays["q_position"] = arrays["q_position"].at[0].set(-1)
    for name in ("table", "length"):
        arrays[name] = arrays[name].at[:, :, 1].set(arrays[name][:, :, 0])
    ours = jax.jit(partial(latent_decode, **static))(arrays)
    assert_out_and_lse(ours, reference.latent_decode(**by_table(arrays), **static))


def test_through_the_op_gradients_are_those_of_the_definition(monkeypatch):
    arrays, static = make(ODD, np.array([[[9, 0, 1]], [[8, 7, 9]]]))
    interpreted = partial(mosaic_tpu.latent_decode, interpret=pltpu.InterpretParams())
    monkeypatch.setattr(op, "_mosaic_tpu", interpreted)
    monkeypatch.setattr(op, "fits", lambda meant, *_: meant == "tpu")
    monkeypatch.setattr(op, "by_platform", lambda xla, sm90, tpu: tpu)

    def definition(owner, **arrays):
        return reference.latent_decode(**arrays)

    def loss(decode, q, entry):
        out, lse, _ = decode(**arrays | {"q": q, "entry": entry}, **static)
        seen = jnp.isfinite(lse)
        return (out**2).sum() + jnp.where(seen, jnp.where(seen, lse, 0), 0).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)
    value, ours = gradient(op.latent_decode, arrays["q"], arrays["entry"])
    wanted, theirs = gradient(definition, arrays["q"], arrays["entry"])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs
    )


def test_what_it_cannot_take_is_said():
    arrays, _ = make(replace(ODD, rows=replace(ODD.rows, G=129)))
    with pytest.raises(ValueError, match="1 x 129 queries of a row exceed 128"):
        mosaic_tpu.check(arrays["q"], arrays["entry"])
    half, entry = (x.astype(jnp.float16) for x in (arrays["q"], arrays["entry"].row))
    entry = replace(arrays["entry"], row=entry)
    with pytest.raises(ValueError, match="not float16 and float16"):
        mosaic_tpu.check(half, entry)
    assert fits("tpu", mosaic_tpu.__name__, arrays["q"][..., :128, :], arrays["entry"])
    assert not fits("tpu", mosaic_tpu.__name__, arrays["q"], arrays["entry"])
