"""Every op, and a decode step of a whole model, compiled for every TPU generation.

It takes libtpu (`pip install -e '.[test,tpu]'`) and no TPU. A program must compile, fit
in a chip's memory, write what is donated in place, and neither copy nor transpose an
array the size of a pool. Nothing is executed: that a program ends, and what it gives,
is not tested here.
"""

import functools
import importlib.util
import itertools
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

PROGRAMS = (*op_calls(), STEP)
EVERY = pytest.mark.parametrize(
    "generation, program", list(itertools.product(GENERATIONS, PROGRAMS))
)
KERNELS = {  # that a program calls, and how often; the ops' by their names
    "append_entries": {"append_entries": 1},
    "column_scores": {"column_scores_rows": 1, "column_scores_columns": 1},
    "latent_decode": {"latent_decode": 1},
    "pack_pages": {"pack_pages": 1},
    "ragged_decode": {"ragged_decode": 1},
    STEP: {"append_entries": LAYERS, "ragged_decode": LAYERS},
}


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
    return {name: found.get(name, {"error": end}) for name in PROGRAMS}


@EVERY
def test_compiles_and_fits(generation, program):
    made = compiled(generation)[program]
    assert not made["error"], made["error"]
    needs = made["resident"] + made["temporary"] + made["code"]
    assert 0 < needs <= GENERATIONS[generation].memory
    assert made["aliased"] >= made["donated"]


@EVERY
def test_goes_through_the_kernel(generation, program):
    """A decode step appends and attends in every layer."""
    function, *_ = program.split(" at ")
    assert compiled(generation)[program].get("kernels") == KERNELS[function]


@EVERY
def test_moves_no_pool(generation, program):
    assert compiled(generation)[program]["relayouts"] == []
