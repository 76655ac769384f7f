"""Pools of latents made for tests of latent_decode."""

from tests.pallas_kernels.ragged_decode import made


def make(spec, *how, **more):
    """(arrays, static arguments) of a call at a spec."""
    arrays, static = made.make(spec.rows, *how, **more, values=False)
    return arrays, static | {"value_dim": spec.value_dim}
