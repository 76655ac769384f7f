"""column_scores' TPU kernel equals its definition, interpreted on a CPU.

Copies arrive as late as they may, memory that was not written holds NaN, and races are
told. A hang ends the process.
"""

import faulthandler
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.column_scores import mosaic_tpu, op, reference
from pallas_kernels.column_scores.mosaic_tpu import Sizes
from pallas_kernels.column_scores.specs import SPECS, Spec
from pallas_kernels.column_scores.xla import group_of
from pallas_kernels.dispatch import compile_for, fits
from tests.pallas_kernels.column_scores.test_xla import assert_same, make

HANG = 120  # seconds that no test takes
ONE_CORE = Sizes(queries=256, keys=384, most=384, rows=128)
TWO_CORES = Sizes(queries=128, keys=128, most=256, rows=64, parts=2)
ODD = Spec("odd", T=140, S=270, K=2, G=2, H=64, lengths=(270, 100))


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(HANG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def column_scores(
    arrays, *, scale, reduce="sum", group=None, tiles=TWO_CORES, races=False
):
    interpret = pltpu.InterpretParams(detect_races=races, uninitialized_memory="nan")
    how = dict(scale=scale, reduce=reduce, group=group_of(reduce, group))
    return mosaic_tpu.column_scores(**arrays, **how, tiles=tiles, interpret=interpret)


def definition(arrays, **static):
    return jax.jit(partial(reference.column_scores, **static))(**arrays)


@pytest.mark.parametrize("number", range(len(SPECS)), ids=[s.name for s in SPECS])
def test_equals_the_definition(number, capfd):
    arrays, static = make(SPECS[number], shuffle=number % 4 == 2)
    tiles = (TWO_CORES, ONE_CORE)[number % 2]
    ours = jax.jit(partial(column_scores, **static, tiles=tiles, races=True))(arrays)
    assert_same(ours, definition(arrays, **static))
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize("H", [96, 256])
def test_half_precision(H):
    spec = replace(ODD, H=H, reduce="max", group="mean")
    arrays, static = make(spec, dtype=jnp.bfloat16)
    ours = jax.jit(partial(column_scores, **static))(arrays)
    assert_same(ours, definition(arrays, **static))


odd_scores = jax.jit(partial(column_scores, scale=0.125))
odd_reference = jax.jit(partial(reference.column_scores, scale=0.125))


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 128, 129, 270]), min_size=2, max_size=2),
    shuffle=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_odd_lengths_in_any_order_on_one_program(lengths, shuffle, holes, seed):
    """Tokens that are no queries or keys hold what is large, in their midst too."""
    arrays, _ = make(ODD, lengths, seed=seed, shuffle=shuffle)
    if holes:
        rng = np.random.default_rng(seed)
        for name in ("q", "k"):
            gone = rng.random(arrays[f"{name}_position"].shape) < 0.3
            garbage = jnp.where(gone[..., None, None], 1e4, arrays[name])
            position = jnp.where(gone, -1, arrays[f"{name}_position"])
            arrays |= {name: garbage, f"{name}_position": position}
    assert_same(odd_scores(arrays), odd_reference(**arrays))
    assert odd_scores._cache_size() == 1


@settings(max_examples=3, deadline=None)  # each compiles two programs
@given(
    T=st.sampled_from([1, 33, 129, 200]),
    S=st.integers(1, 300),
    heads=st.sampled_from([(1, 1), (3, 2), (1, 8)]),
    H=st.sampled_from([64, 96, 128]),
    reduce=st.sampled_from(["sum", "max"]),
    group=st.sampled_from([None, "mean", "max"]),
    seed=st.integers(0, 1000),
)
def test_odd_shapes(T, S, heads, H, reduce, group, seed):
    lengths = np.random.default_rng(seed).integers(0, S + 1, 2)
    spec = Spec("drawn", T, S, *heads, H, tuple(lengths.tolist()), reduce, group)
    arrays, static = make(spec, seed=seed)
    ours = jax.jit(partial(column_scores, **static))(arrays)
    assert_same(ours, definition(arrays, **static))


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("spec", [ODD, SPECS[7]], ids=lambda spec: spec.name)
def test_a_given_lse_replaces_the_queries_own(spec, reduce):
    arrays, static = make(spec, shuffle=True)
    static |= {"reduce": reduce}
    lse = jax.random.normal(jax.random.key(0), arrays["q"].shape[:3])
    lse = jnp.where(arrays["q_position"][..., None] % 5 == 3, -jnp.inf, lse + 3)
    arrays |= {"lse": lse}
    ours, same = jax.jit(partial(column_scores, **static))(arrays)
    np.testing.assert_array_equal(same, lse)
    assert_same((ours,), definition(arrays, **static)[:1])


def test_a_batch_of_vmap_is_a_batch():
    arrays, static = make(ODD, lengths=(270, 100))
    score = partial(column_scores, **static)
    of_row = jax.vmap(lambda row: score(jax.tree.map(lambda x: x[None], row)))
    jaxpr = str(jax.make_jaxpr(of_row)(arrays))
    assert jaxpr.count("name=column_scores_rows") == 1 and "while" not in jaxpr
    ours = [x[:, 0] for x in jax.jit(of_row)(arrays)]
    assert_same(ours, definition(arrays, **static))


def test_through_the_op_on_each_devices_part(monkeypatch):
    """Two sequences over `data`, two groups of heads over `tensor`; no gradient."""
    parts = []

    def interpreted(q, k, **rest):
        parts.append((q.shape, k.shape))
        return mosaic_tpu.column_scores(
            q, k, **rest, tiles=TWO_CORES, interpret=pltpu.InterpretParams()
        )

    monkeypatch.setattr(op, "_mosaic_tpu", interpreted)
    monkeypatch.setattr(op, "fits", lambda meant, *_: meant == "tpu")
    monkeypatch.setattr(op, "by_platform", lambda xla, sm90, tpu: tpu)
    arrays, static = make(replace(ODD, T=20), lengths=(270, 100))
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), auto, devices=jax.devices()[:4])

    def loss(q, rest):
        scores, lse = op.column_scores(q, **rest, **static)
        return scores.sum() + q.sum(), (scores, lse)

    q, rest = arrays["q"], {n: x for n, x in arrays.items() if n != "q"}
    with jax.set_mesh(mesh):
        of_q, ours = jax.jit(jax.grad(loss, has_aux=True))(q, rest)
    assert_same(ours, definition(arrays, **static))
    np.testing.assert_array_equal(of_q, 1.0)
    assert set(parts) == {((1, 20, 2, 64), (1, 270, 1, 64))}


def test_blocks_shrink_until_they_fit():
    def shapes(T, S, N, K, H, dtype=jnp.bfloat16):
        make = partial(jax.ShapeDtypeStruct, dtype=dtype)
        return make((1, T, N, H)), make((1, S, K, H))

    def of(tiles, *args):
        made = mosaic_tpu.fitted(tiles, *shapes(*args))
        return made.queries, made.keys

    large = Sizes(vmem=2**26)
    assert of(large, 4096, 4096, 32, 8, 128) == (512, 1024)
    assert of(large, 5, 10**5, 8, 8, 128) == (128, 2048)
    assert of(large, 5, 40, 8, 8, 128) == (128, 128)
    assert of(Sizes(), 4096, 4096, 32, 8, 128) == (256, 512)
    with pytest.raises(ValueError, match="256 query and 256 kv heads of 256 in bfloat"):
        of(Sizes(), 4096, 4096, 256, 256, 256)


def test_what_it_cannot_take_is_said():
    arrays, static = make(SPECS[0])
    odd, _ = make(replace(SPECS[0], H=80))
    half = arrays | {"k": arrays["k"].astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match="head_dim 80 is not one of 64, 96, 128, 256"):
        column_scores(odd, **static)
    with pytest.raises(ValueError, match="not float32 and bfloat16; use xla"):
        column_scores(half, **static)
    with compile_for("tpu"):
        assert fits("tpu", mosaic_tpu.__name__, arrays["q"], arrays["k"])
        assert not fits("tpu", mosaic_tpu.__name__, odd["q"], odd["k"])
    assert not fits("tpu", mosaic_tpu.__name__, arrays["q"], arrays["k"])
