"""Slices by name, and what is said of those that there are not."""

import pytest

from jaxkv.plan.topologies import topology


@pytest.mark.parametrize(
    "name, chips",
    [("v5e:16x16", 256), ("v6e:2x4", 8), ("v5p:4x4x8", 128), ("v4:2x2x1", 4)],
)
def test_a_slice_has_so_many_chips(name, chips):
    assert topology(name).chips == chips


@pytest.mark.parametrize(
    "name, said",
    [
        ("v7:2x2", "names no TPU generation"),
        ("v5e", "is without a grid"),
        ("v5e:3x3", "no slice of v5e is 3x3; give 2x2"),
        ("v5e:4x4x4", "no slice of v5e is 4x4x4"),
        ("v5p:4x4", "no slice of v5p is 4x4"),
        ("v4:4x4x6", "three multiples of 4"),
        ("v4:0x4x4", "no slice of v4"),
        ("v5e:2x2x", "no slice of v5e"),
    ],
)
def test_what_is_no_slice_is_told(name, said):
    with pytest.raises(ValueError, match=said):
        topology(name)
