"""What tests of TPU kernels share: they are interpreted on a CPU, and must end."""

import faulthandler

import pytest

from pallas_kernels.dispatch import compile_for

HANG = 120  # seconds that no test takes


@pytest.fixture
def meant_for_a_tpu():
    """Pools are made as a TPU holds them, and a hang ends the process."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    with compile_for("tpu"):
        yield
    faulthandler.cancel_dump_traceback_later()
