"""pack_pages on Hopper: lowered everywhere; there it equals XLA's gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import versions
from pallas_kernels.dispatch import target
from pallas_kernels.pack_pages import mosaic_gpu, xla
from pallas_kernels.pack_pages.specs import SPECS, Spec
from tests.pallas_kernels.cuda import KERNEL, lowered

HALF = jnp.bfloat16
LARGE = Spec("large", B=3, S=900, J=2, R=4, H=256, P=512, pages=5, T=1)
lowers = pytest.mark.skipif(not versions.MOSAIC_GPU, reason="needs jax 0.11")
runs = pytest.mark.skipif(target() != "sm90", reason="needs a Hopper GPU")


@lowers
@pytest.mark.parametrize("spec", (*SPECS, LARGE), ids=lambda spec: spec.name)
def test_lowers_for_hopper(spec):
    pack, _ = spec.calls(HALF)
    assert KERNEL in lowered(pack)


def test_says_what_it_does_not_take():
    k, source = jnp.zeros((1, 5, 1, 1, 64), HALF), jnp.zeros((1, 1, 1, 96), jnp.int32)
    with pytest.raises(ValueError, match="Pages of 96 slots are no multiple of 64"):
        mosaic_gpu.check(k, source)
    with pytest.raises(ValueError, match="stores 16-bit entries, not float32"):
        mosaic_gpu.check(k.astype(jnp.float32), source)


@runs
@pytest.mark.parametrize("spec", (*SPECS, LARGE), ids=lambda spec: spec.name)
def test_equals_xla(spec):
    """Every slot of every page is written, those that are empty too."""
    pack, _ = spec.calls(HALF)
    rng = np.random.default_rng(0)
    arrays = {
        name: None if x is None else jnp.asarray(rng.normal(size=x.shape), HALF)
        for name, x in pack.arrays.items()
        if name in ("k", "v")
    }
    for name, most in (("token_position", 9999), ("owner", spec.R), ("source", spec.S)):
        shape = pack.arrays[name].shape
        arrays[name] = jnp.asarray(rng.integers(-1, most, shape), jnp.int32)
    entry, position = jax.jit(mosaic_gpu.pack_pages)(**arrays)
    wanted, positions = xla.pack_pages(**arrays)
    np.testing.assert_array_equal(position, positions)
    jax.tree.map(np.testing.assert_array_equal, entry, wanted)
