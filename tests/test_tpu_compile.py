"""Every op, and a decode step of a whole model, compiled for every TPU generation.

It takes libtpu (`pip install -e '.[test,tpu]'`) and no TPU. A program must compile, fit
in a chip's memory, write what is donated in place, and neither copy nor transpose an
array the size of a pool. Nothing is executed: that a program ends, and what it gives,
is not tested here.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_generations import GENERATIONS, LAYERS, STEP
from tests.tpu_ops import op_calls

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu to compile for TPUs: pip install -e '.[test,tpu]'",
)
END = ("timeout", "--kill-after=10", "400")  # seconds; a generation takes about 35
OURS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # of the tests that run on a CPU

# A TPU puts P along its 128 lanes where that pads less than H would. The gather and the
# scatter go by slots, so that XLA turns such a pool round after them, and before.
# A loop of decode steps turns it once at each end, and not at every step. The decode
# kernel reads pages that are not turned.
TURNED = "keys and values of 128 slots of {} lie turned round, and are copied {} each"
EXPECTED = {
    f"{function} at {spec}": TURNED.format(H, times)
    for function, times in (("pack_pages", "once"), ("append_entries", "twice"))
    for spec, H in (("short head", 64), ("wide page", 96))
} | {"ragged_decode at bias": TURNED.format(64, "once")}


def cases(expected):
    """Each program of each generation; strict failures of the expected ones."""
    for generation in GENERATIONS:
        for program in (*op_calls(), STEP):
            fails = pytest.mark.xfail(
                strict=True, raises=AssertionError, reason=expected.get(program)
            )
            marks = fails if program in expected else ()
            yield pytest.param(generation, program, marks=marks)


@functools.cache
def compiled(generation: str) -> dict[str, dict]:
    """What came of each program, from a process of its own: some failures end it."""
    environment = {name: x for name, x in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [*END, sys.executable, "-m", "tests.tpu_compile", generation],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    end = f"The process ended with {done.returncode}: {done.stderr[-2000:]}"
    found = {row["program"]: row for row in rows}
    return {name: found.get(name, {"error": end}) for name in (*op_calls(), STEP)}


@pytest.mark.parametrize("generation, program", list(cases({})))
def test_compiles_and_fits(generation, program):
    made = compiled(generation)[program]
    assert not made["error"], made["error"]
    needs = made["resident"] + made["temporary"] + made["code"]
    assert 0 < needs <= GENERATIONS[generation].memory
    assert made["aliased"] >= made["donated"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_decodes_through_the_kernel(generation):
    made = compiled(generation)
    for program in (*op_calls(), STEP):
        if program.startswith("ragged_decode"):
            assert made[program].get("kernels") == 1
        if program.startswith("column_scores"):
            assert made[program].get("kernels") == 2  # of rows, and of columns
    assert made[STEP].get("kernels") == LAYERS


@pytest.mark.parametrize("generation, program", list(cases(EXPECTED)))
def test_moves_no_pool(generation, program):
    assert compiled(generation)[program]["relayouts"] == []
