"""over_mesh gives each device its own sequences and head groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pallas_kernels import versions
from pallas_kernels.sharded import over_mesh
from tests.pallas_kernels.cuda import KERNEL, lowered
from tests.tpu_ops import op_calls

KINDS = {"x": "BJ", "position": "B", "none": "BJ", "scale": "", "y": "B-J"}


def arrays(B, J):
    return {
        "none": None,
        "x": jnp.arange(B * J * 3.0).reshape(B, J, 3),
        "position": jnp.arange(float(B)),
        "scale": jnp.float32(2),
        "y": jnp.arange(B * 2.0 * J).reshape(B, 2, J),
    }


@pytest.mark.parametrize(
    ("shape", "local"),
    [((4, 2), (1, 1)), ((8, 4), (2, 2)), ((6, 2), (6, 1)), ((4, 3), (1, 3))],
)
def test_axes_are_split_where_the_mesh_divides_them(shape, local):
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    seen = []

    def f(arrays):
        seen.append(arrays["x"].shape[:2])
        at = arrays["position"][:, None, None]
        y = arrays["y"].swapaxes(1, 2).sum(axis=2, keepdims=True)
        return arrays["x"] * arrays["scale"] + at + y, None

    mesh = jax.make_mesh((4, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        ours, _ = jax.jit(lambda arrays: over_mesh(f, arrays, KINDS))(arrays(*shape))
    assert seen == [local]
    theirs, _ = over_mesh(f, arrays(*shape), KINDS)
    assert seen[1] == shape  # no mesh, no parts
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("J", "local"), [(1, (2, 1, 3, 2)), (2, (2, 1, 3, 4))])
def test_query_heads_are_split_where_groups_are_not(J, local):
    """One row of latents: every device of the tensor axis has it, and some heads."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    seen = []

    def f(arrays):
        seen.append(arrays["q"].shape)
        return arrays["q"] * arrays["row"][:, :, None, None]

    given = {
        "q": jnp.arange(4 * J * 3 * 4.0).reshape(4, J, 3, 4),
        "row": jnp.arange(4.0 * J).reshape(4, J),
    }
    kinds = {"q": "BJ-N", "row": "BJ"}
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda arrays: over_mesh(f, arrays, kinds, "BJ-N"))(given)
    assert seen == [local]
    np.testing.assert_array_equal(ours, f(given))


@pytest.mark.skipif(not versions.MOSAIC_GPU, reason="needs jax 0.11")
@pytest.mark.parametrize(
    "name",
    ["ragged_decode at groups", "append_entries at groups", "column_scores at window"],
)
def test_kernels_for_hopper_are_each_devices_own(name):
    """What XLA does not split stands inside a shard_map, with a device's part."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.make_mesh((1, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        text = lowered(op_calls()[name])
    assert KERNEL in text and "manual_computation" in text
