"""Programs are traced for the platform that is meant."""

import pytest

from pallas_kernels import dispatch
from pallas_kernels.layout import page_slots


@pytest.mark.parametrize(
    ("target", "platform"),
    [("cpu", "cpu"), ("gpu", "gpu"), ("sm90", "gpu"), ("tpu", "tpu")],
)
def test_the_platform_of_a_named_target(target, platform):
    with dispatch.compile_for(target):
        assert dispatch.target() == target
        assert dispatch.platform() == platform


def test_an_unknown_target():
    with pytest.raises(ValueError, match="target='T4' is not one of"):
        with dispatch.compile_for("T4"):
            pass


def test_pages_for_a_tpu_fill_its_lanes():
    assert page_slots(100) == 64
    with dispatch.compile_for("tpu"):
        assert page_slots(100) == 128
        assert page_slots(10**6) == 512
