"""append_entries' TPU kernel equals its definition, interpreted on a CPU.

Memory that was not written holds NaN, and races are told. A hang ends the process.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import compile_for, fits
from pallas_kernels.pack_pages import mosaic_tpu_append, reference
from pallas_kernels.pack_pages.specs import SPECS, Spec
from tests.pallas_kernels.pack_pages.made import content, places, pool, prompt

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
pytestmark = pytest.mark.usefixtures("meant_for_a_tpu")
ODD = Spec("odd", B=2, S=40, J=1, R=2, H=16, P=16, pages=5, T=3)


def append_entries(*arrays, races=False):
    interpret = pltpu.InterpretParams(detect_races=races, uninitialized_memory="nan")
    return mosaic_tpu_append.append_entries(*arrays, interpret=interpret)


def assert_appended(append, entry, position, new, page, slot):
    """What the definition gives: the new entries, and all others as they were."""
    wanted = reference.append_entries(*content(entry, position), *new, page, slot)
    new = jax.tree.map(jnp.asarray, new)
    entry, position = append(entry, position, *new, jnp.asarray(page), slot)
    jax.tree.map(np.testing.assert_array_equal, content(entry, position), wanted)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
@EVERY
def test_append_equals_the_definition(spec, dtype, monkeypatch, capfd):
    """Also where a block of rows is one row, and the last block is not full."""
    monkeypatch.setattr(mosaic_tpu_append, "BLOCK", 3 * 4 * spec.T * 16 * 256)
    append = jax.jit(partial(append_entries, races=True))
    assert_appended(append, *pool(spec, dtype), prompt(spec, spec.T), *places(spec))
    assert "RACE" not in capfd.readouterr().out


odd_append = jax.jit(append_entries)


@settings(max_examples=10, deadline=None)
@given(first=st.sampled_from([0, 1, 14, 15]), seed=st.integers(0, 1000))
def test_appends_anywhere_on_one_program(first, seed):
    """A row's slots in one tile, in two, or in two pages; some of them dropped."""
    page, slot = places(ODD, seed)
    page[0, 0, 0] = [first // ODD.P, (first + 1) // ODD.P, (first + 2) // ODD.P]
    slot[0, 0, 0] = [x % ODD.P for x in range(first, first + 3)]
    page[0, 0, 1] = 3
    entry, position = pool(ODD)
    entry = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), entry)
    assert_appended(odd_append, entry, position, prompt(ODD, ODD.T, seed), page, slot)
    assert odd_append._cache_size() == 1


@pytest.mark.parametrize(
    "changes, dtype, said",
    [
        ({}, jnp.float16, "bfloat16 or float32, not float16"),
        ({"P": 8}, jnp.bfloat16, "Pages of 8 slots of bfloat16"),
        ({"T": 9}, jnp.float32, "9 tokens at once are more than 8"),
        ({"B": 2**14}, jnp.float32, "98304 entries are more than 65536"),
    ],
)
def test_append_says_what_it_does_not_take(changes, dtype, said):
    _, append = replace(ODD, **changes).calls(dtype)
    arrays = [append.arrays[name] for name in ("entry", "position", "k")]
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(mosaic_tpu_append.check, *arrays)


def test_append_is_offered_for_a_tpu_alone():
    arrays = *pool(ODD), jnp.asarray(prompt(ODD, ODD.T)[0])
    assert fits("tpu", mosaic_tpu_append.__name__, *arrays)
    assert not fits(
        "tpu", mosaic_tpu_append.__name__, *arrays[:2], jnp.ones((1, 9, 1, 1, 1))
    )
    with compile_for("cpu"):
        assert not fits("tpu", mosaic_tpu_append.__name__, *arrays)
