"""append_entries on Hopper: lowered everywhere; there it equals XLA's scatter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import versions
from pallas_kernels.dispatch import target
from pallas_kernels.pack_pages import mosaic_gpu_append, xla
from pallas_kernels.pack_pages.specs import SPECS
from tests.pallas_kernels.cuda import KERNEL, lowered

HALF = jnp.bfloat16
lowers = pytest.mark.skipif(not versions.MOSAIC_GPU, reason="needs jax 0.11")
runs = pytest.mark.skipif(target() != "sm90", reason="needs a Hopper GPU")


@lowers
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_lowers_for_hopper_in_place(spec):
    _, append = spec.calls(HALF)
    assert "output_operand_alias" in lowered(append)


@lowers
def test_many_tokens_go_through_xla():
    _, append = replace(SPECS[1], T=9).calls(HALF)
    assert KERNEL not in lowered(append)


@pytest.mark.parametrize(
    "changes, dtype, said",
    [
        ({}, jnp.float32, "stores 16-bit entries, not float32"),
        ({"H": 36}, HALF, "head_dim 36 is no multiple of 8"),
        ({"T": 9}, HALF, "9 tokens at once are more than 8"),
    ],
)
def test_says_what_it_does_not_take(changes, dtype, said):
    _, append = replace(SPECS[1], **changes).calls(dtype)
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), append.arrays)
    with pytest.raises(ValueError, match=said):
        mosaic_gpu_append.check(arrays["entry"], arrays["k"])


@runs
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_equals_xla(spec):
    """Pages outside the pool, on both sides, drop what is to go there."""
    _, append = spec.calls(HALF)
    rng = np.random.default_rng(0)

    def draw(x):
        if x.dtype == HALF:
            return jnp.asarray(rng.normal(size=x.shape), HALF)
        return jnp.asarray(rng.integers(0, 100, x.shape), jnp.int32)

    arrays = jax.tree.map(draw, append.arrays)
    B, J, R, T = arrays["page"].shape
    places = np.arange(R * T, dtype=np.int32).reshape(1, 1, R, T)  # each another slot
    arrays["page"] = jnp.asarray(np.broadcast_to(places // spec.P, (B, J, R, T)))
    arrays["page"] = arrays["page"].at[:, :, 0, 0].set(rng.choice([-1, spec.pages]))
    arrays["slot"] = jnp.asarray(np.broadcast_to(places % spec.P, (B, J, R, T)))
    arrays = jax.tree.map(
        lambda x: x.astype(jnp.int32) if x.dtype == int else x, arrays
    )
    ours = jax.jit(mosaic_gpu_append.append_entries)(**arrays)
    jax.tree.map(np.testing.assert_array_equal, ours, xla.append_entries(**arrays))
