"""column_scores on Hopper: every spec lowers for CUDA, and equals its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import versions
from pallas_kernels.column_scores import column_scores, reference
from pallas_kernels.column_scores.specs import SPECS, Spec
from pallas_kernels.dispatch import compile_for, target
from tests.pallas_kernels.column_scores.test_xla import assert_same, make

# The tolerance is test_xla's, 2e-5 of the largest score: what is multiplied is exact in
# fp32, and the sums and exponentials are fp32.
ODD = (
    Spec("eight heads", T=9, S=517, K=2, G=8, H=128, lengths=(517, 100)),
    Spec("one head", T=70, S=1000, K=2, G=1, H=256, lengths=(1000, 60)),
    Spec("three heads", T=301, S=333, K=1, G=3, H=256, lengths=(333, 290)),
    Spec("apart", T=513, S=700, K=2, G=2, H=96, lengths=(700, 300), group="max"),
    Spec("mean of maxima", 100, 1300, 1, 4, 128, (1300,), reduce="max", group="mean"),
)
CALLS = "mosaic_gpu", "mosaic_gpu_v2"
has_mosaic = pytest.mark.skipif(
    not versions.MOSAIC_GPU, reason="Mosaic GPU needs jax >= 0.11"
)
on_hopper = pytest.mark.skipif(target() != "sm90", reason="needs a Hopper GPU")


def lowered(function, *arguments) -> str:
    """The program for CUDA of `function`, traced for Hopper."""
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    with compile_for("sm90"):
        made = jax.export.export(
            jax.jit(function), platforms=["cuda"], disabled_checks=checks
        )(*arguments)
    return made.mlir_module()


def call_of(spec, dtype=jnp.bfloat16):
    """The op of one argument, all arrays of a spec, and what they are."""
    (call,) = spec.calls(dtype)
    return lambda arrays: call.function(**arrays, **call.options), call.arrays


@has_mosaic
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_lowers_for_hopper(spec, dtype):
    function, arrays = call_of(spec, dtype)
    assert lowered(function, arrays).count("@mosaic_gpu") == 2


@has_mosaic
def test_a_given_lse_needs_one_pass():
    function, arrays = call_of(SPECS[3])
    lse = jax.ShapeDtypeStruct(arrays["q"].shape[:3], jnp.float32)
    assert lowered(function, arrays | {"lse": lse}).count("@mosaic_gpu") == 1


@has_mosaic
def test_lowers_under_vmap_and_grad():
    function, arrays = call_of(SPECS[1])
    more = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), arrays)
    assert "@mosaic_gpu" in lowered(jax.vmap(function), more)

    def loss(q, rest):
        return function({"q": q, **rest})[0].sum() + q.astype(jnp.float32).sum()

    q = arrays.pop("q")
    assert "@mosaic_gpu" in lowered(jax.value_and_grad(loss), q, arrays)


@has_mosaic
def test_fp32_and_other_head_dims_go_through_xla():
    function, arrays = call_of(SPECS[1], jnp.float32)
    assert "@mosaic_gpu" not in lowered(function, arrays)
    odd = Spec("odd", T=4, S=9, K=1, G=1, H=80, lengths=(9,))
    assert "@mosaic_gpu" not in lowered(*call_of(odd))


@has_mosaic
def test_says_what_it_does_not_take():
    from pallas_kernels.column_scores import mosaic_gpu

    odd = Spec("odd", T=4, S=9, K=1, G=1, H=80, lengths=(9,))
    how = dict(scale=1.0, reduce="sum", group="mean")
    arrays, _ = make(odd, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="head_dim 80 is not one of 64, 96, 128, 256"):
        mosaic_gpu.column_scores(**arrays, **how)
    arrays, _ = make(SPECS[0])
    with pytest.raises(ValueError, match="one 16-bit dtype, not float32 and float32"):
        mosaic_gpu.column_scores(**arrays, **how)


def both(arrays, static):
    """The op's result and its definition's."""
    ours = jax.jit(partial(column_scores, **static))(**arrays)
    with jax.default_matmul_precision("highest"):
        return ours, jax.jit(partial(reference.column_scores, **static))(**arrays)


@on_hopper
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("spec", SPECS + ODD, ids=lambda spec: spec.name)
def test_equals_the_definition(spec, shuffle):
    assert_same(*both(*make(spec, dtype=jnp.bfloat16, shuffle=shuffle)))


@on_hopper
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("spec", ODD[:4:3], ids=lambda spec: spec.name)
def test_a_given_lse_replaces_the_queries_own(spec, reduce):
    arrays, static = make(spec, dtype=jnp.float16, shuffle=True)
    lse = jax.random.normal(jax.random.key(0), arrays["q"].shape[:3])
    lse = jnp.where(arrays["q_position"][..., None] % 5 == 3, -jnp.inf, lse + 3)
    (ours, same), (theirs, _) = both(arrays | {"lse": lse}, static | {"reduce": reduce})
    np.testing.assert_array_equal(same, lse)
    assert_same((ours,), (theirs,))


@on_hopper
def test_a_batch_of_vmap_is_a_batch():
    arrays, static = make(SPECS[1], dtype=jnp.bfloat16)
    score = partial(column_scores, **static)
    alone = jax.vmap(lambda row: score(**jax.tree.map(lambda x: x[None], row)))(arrays)
    together = jax.jit(score)(**arrays)
    assert_same([x[:, 0] for x in alone], together)
