"""The op on this platform: what it adds to its implementations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ragged_decode import op
from pallas_kernels.ragged_decode.specs import SPECS
from tests.pallas_kernels.ragged_decode.made import make


def test_a_sink_is_one_more_logit_without_value():
    arrays, static = make(SPECS[2])
    B, J, R, T, G, H = arrays["q"].shape
    sinks = jax.random.normal(jax.random.key(0), (J, R, G))
    decode = jax.jit(partial(op.ragged_decode, **static))
    plain, lse, _ = decode(**arrays)
    out, total, _ = decode(**arrays, sinks=sinks)
    wanted = jnp.exp(lse) + jnp.exp(sinks)[None, :, :, None]
    np.testing.assert_allclose(jnp.exp(total), wanted, rtol=1e-5)
    share = (jnp.exp(lse) / wanted)[..., None]
    np.testing.assert_allclose(out, plain * share, rtol=1e-4, atol=1e-6)


def test_a_sink_keeps_the_dtype_of_half_precision():
    arrays, static = make(SPECS[2], dtype=jnp.bfloat16)
    B, J, R, T, G, H = arrays["q"].shape
    out, lse, _ = jax.jit(partial(op.ragged_decode, **static))(
        **arrays, sinks=jnp.zeros((J, R, G))
    )
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
