"""The op on this platform."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.latent_decode import latent_decode, reference
from pallas_kernels.latent_decode.specs import SPECS
from pallas_kernels.ragged_decode import ragged_decode
from tests.pallas_kernels.latent_decode.made import make
from tests.pallas_kernels.ragged_decode.made import assert_out_and_lse, by_table


def test_equals_the_definition():
    arrays, static = make(SPECS[2], dtype=jnp.bfloat16)
    ours = jax.jit(partial(latent_decode, **static))(**arrays)
    theirs = reference.latent_decode(**by_table(arrays), **static)
    assert_out_and_lse(ours, theirs, jnp.bfloat16)


@pytest.mark.parametrize("value_dim", (0, 97))
def test_a_value_is_a_part_of_a_latent(value_dim):
    arrays, static = make(SPECS[2])
    with pytest.raises(ValueError, match=f"value_dim {value_dim} is not from 1 to 96"):
        latent_decode(**arrays, **static | {"value_dim": value_dim})


def test_ragged_decode_does_not_take_latents():
    arrays, static = make(SPECS[2])
    del static["value_dim"]
    with pytest.raises(ValueError, match="latent_decode does"):
        ragged_decode(**arrays, **static)
