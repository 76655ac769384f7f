"""pack_pages' TPU kernel equals its definition, interpreted on a CPU.

Memory that was not written holds NaN, as does every entry that is not chosen, and races
are told. A hang ends the process.
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
from pallas_kernels.pack_pages import mosaic_tpu, reference
from pallas_kernels.pack_pages.specs import SPECS, Spec
from tests.pallas_kernels.pack_pages.made import choice, content, prompt

pytestmark = pytest.mark.usefixtures("meant_for_a_tpu")
ODD = Spec("odd", B=2, S=40, J=2, R=3, H=16, P=16, pages=3, T=1)


def pack_pages(*arrays, races=False):
    interpret = pltpu.InterpretParams(detect_races=races, uninitialized_memory="nan")
    return mosaic_tpu.pack_pages(*arrays, interpret=interpret)


def poisoned(spec, tokens, owner, source, dtype):
    """NaN in all keys and values but those chosen, and the first token's."""
    k, v, position = tokens
    keep = np.zeros(k.shape[:-1], bool)
    keep[:, 0] = True
    for b, j, p in np.ndindex(owner.shape):
        keep[b, np.maximum(source[b, j, p], 0), j, max(owner[b, j, p], 0)] = True

    def drawn(x):
        return jnp.asarray(np.where(keep[..., None], x, np.nan), dtype)

    return drawn(k), None if v is None else drawn(v), jnp.asarray(position)


def assert_packed(pack, spec, tokens, owner, source, dtype=jnp.float32):
    """What the definition gives; empty slots hold position -1 and are finite."""
    k, v, position = poisoned(spec, tokens, owner, source, dtype)
    entry, stored = pack(k, v, position, jnp.asarray(owner), jnp.asarray(source))
    *wanted, positions = reference.pack_pages(
        *jax.tree.map(np.asarray, (k, v, position)), owner, source
    )
    *found, stored = content(entry, stored)
    np.testing.assert_array_equal(stored, positions)
    held = positions >= 0
    for ours, theirs in zip(found[: 1 + spec.values], wanted, strict=False):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours[held], theirs[held])
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(entry))


@pytest.mark.parametrize("number", range(len(SPECS)), ids=[s.name for s in SPECS])
def test_equals_the_definition(number):
    spec, dtype = SPECS[number], (jnp.float32, jnp.bfloat16)[number % 2]
    tokens, choices = prompt(spec, spec.S), choice(spec)
    assert_packed(jax.jit(pack_pages), spec, tokens, *choices, dtype)


@pytest.mark.parametrize(
    "changes, dtype",
    [
        ({"J": 1}, jnp.bfloat16),
        ({"B": 1, "H": 128, "R": 2}, jnp.bfloat16),  # keys and values apart
        ({"B": 1, "R": 16}, jnp.float32),  # two tiles of heads
        ({"P": 256, "pages": 1, "B": 1, "J": 1}, jnp.bfloat16),  # two blocks a page
        ({"B": 1, "R": 1, "H": 200, "values": False}, jnp.bfloat16),  # latents
        ({"pages": 1, "B": 1, "J": 1, "H": 256}, jnp.float32),  # one block
    ],
    ids=str,
)
def test_no_race_at_other_sizes(changes, dtype, capfd):
    spec = replace(ODD, **changes)
    pack = jax.jit(partial(pack_pages, races=True))
    assert_packed(pack, spec, prompt(spec, spec.S), *choice(spec), dtype)
    assert "RACE" not in capfd.readouterr().out


odd_pack = jax.jit(partial(pack_pages))


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 15, 16, 17, 33]), min_size=4, max_size=4),
    order=st.sampled_from(["rising", "falling", "any", "one"]),
    seed=st.integers(0, 1000),
)
def test_odd_choices_on_one_program(lengths, order, seed):
    """Rows of one page or several, pages of no owner, sources that repeat."""
    rng = np.random.default_rng(seed)
    owner = np.full((ODD.B, ODD.J, ODD.pages), -1, np.int32)
    source = np.full((*owner.shape, ODD.P), -1, np.int32)
    for (b, j), length in zip(np.ndindex(ODD.B, ODD.J), lengths, strict=True):
        chosen = rng.permutation(ODD.S)[:length]
        if order in ("rising", "falling"):
            chosen = np.sort(chosen)[:: 1 if order == "rising" else -1]
        elif order == "one":
            chosen = chosen[:1].repeat(length)
        pages = rng.permutation(ODD.pages)[: -(-length // ODD.P)]
        owner[b, j, pages] = rng.integers(ODD.R)
        for m, page in enumerate(pages):
            part = chosen[m * ODD.P : (m + 1) * ODD.P]
            source[b, j, page, : len(part)] = part
    assert_packed(odd_pack, ODD, prompt(ODD, ODD.S, seed), owner, source)
    assert odd_pack._cache_size() == 1


@pytest.mark.parametrize(
    "changes, dtype, said",
    [
        ({}, jnp.float16, "bfloat16 or float32, not float16"),
        ({"B": 2**15}, jnp.float32, "196608 blocks, more than 131072"),
    ],
)
def test_what_it_cannot_take_is_said(changes, dtype, said):
    pack, _ = replace(ODD, **changes).calls(dtype)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(mosaic_tpu.check, pack.arrays["k"], pack.arrays["source"])


def test_is_offered_for_a_tpu_alone():
    k, source = jnp.ones((1, 1, 1, 1, 16)), jnp.zeros((1, 1, 1, 16), jnp.int32)
    assert fits("tpu", mosaic_tpu.__name__, k, source)
    assert not fits("tpu", mosaic_tpu.__name__, k.astype(jnp.float16), source)
    with compile_for("cpu"):
        assert not fits("tpu", mosaic_tpu.__name__, k, source)
