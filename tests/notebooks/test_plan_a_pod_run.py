"""Notebook 04 plans a run for a TPU slice; it takes libtpu, and no TPU."""

import importlib.util

import pytest

from tests.notebooks.anew import run_anew, text


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu to compile for TPUs: pip install -e '.[test,tpu]'",
)
def test_plans_two_meshes(tmp_path):
    _, _, plan, other = map(text, run_anew("04_plan_a_pod_run", tmp_path))
    assert "v5e:4x4" in plan and "fits" in plan and "a step, our estimate" in plan
    one, two = other.splitlines()
    assert one.startswith("fsdp=16: ") and " over" not in one
    assert two.startswith("fsdp=4,tensor=4: ") and "tensor " in two
