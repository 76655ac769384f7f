"""Eight devices say what one says: rows over data and fsdp, kv heads over tensor."""

import jax
import numpy as np
import pytest

from jaxkv.calibrate.kinds import KINDS
from jaxkv.calibrate.store import calibration, remember
from jaxkv.generate import begin, compress, generate
from jaxkv.heads import Heads
from jaxkv.mesh import AXES, make_mesh
from jaxkv.method import method
from jaxkv.params import take_apart
from jaxkv.pools import row_slots
from jaxkv.prefill import prefill
from jaxkv.prompts import pad
from jaxkv.rules import shardings
from jaxkv.sample import Sample
from pallas_kernels.ragged_decode import op
from pallas_kernels.ragged_decode.xla import ragged_decode
from tests.laws import same_positions
from tests.tiny import CONFIG, KEEP, LENGTHS, tiny_model, tiny_prompts, unlike

UNLIKE_ROW = pytest.mark.parametrize("name", unlike())
NEW = 6
GROUPS = 2
ROWS = ("full", "snapkv", "adakv", "streaming_llm", "kvzip", "expected_attention")
ROWS += ("critical_snapkv_kvpress",)


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    return make_mesh("data=2,fsdp=2,tensor=2", "auto", jax.devices()[:8])


@pytest.fixture(scope="module")
def model(mesh):
    return on(mesh)


def on(mesh):
    """The tiny model on a mesh, with its calibrations."""
    params, rebuild = take_apart(tiny_model())
    model = rebuild(jax.device_put(params, shardings(mesh, params)))
    for kind in KINDS:
        remember(model, kind, calibration(tiny_model(), kind))
    return model


@pytest.fixture(scope="module")
def on_one():
    return caches(tiny_model(), tuple(dict.fromkeys((*unlike(), *ROWS))))


@pytest.fixture(scope="module")
def on_eight(model):
    return caches(model, unlike())


def caches(model, names, groups=GROUPS):
    """Each row's cache, the last token of a prompt left to be fed."""
    padded = pad(tiny_prompts(), CONFIG.vocabulary, CONFIG.max_position)
    rows = tuple(method(name, keep=KEEP) for name in names)
    made = prefill(model, padded, rows, headroom=32, groups=groups, rerun=1)
    return dict(zip(names, made, strict=True))


def answers(model, cache):
    last = [prompt[-1:] for prompt in tiny_prompts()]
    return generate(model, last, cache=cache, max_new_tokens=NEW)


@UNLIKE_ROW
def test_tokens_and_slots_equal_those_of_one_device(name, model, on_one, on_eight):
    ours, theirs = on_eight[name], on_one[name]
    for layer in range(CONFIG.layers):
        assert same_positions(ours.positions[layer], theirs.positions[layer])
    tokens = answers(model, ours)
    assert tokens == answers(tiny_model(), theirs)
    assert len({tuple(row) for row in tokens}) > len(LENGTHS) // 2


@UNLIKE_ROW
def test_each_device_holds_an_eighth_of_the_pool(name, model, on_eight):
    last = [prompt[-1:] for prompt in tiny_prompts()]
    fed = begin(model, last, None, on_eight[name], NEW).cache
    for cache in (on_eight[name], fed):
        for pages in cache.layers:
            arrays = (*pages.entry, pages.position, pages.owner, pages.table)
            for array in arrays:
                assert len(array.addressable_shards) == 8
                for shard in array.addressable_shards:
                    assert shard.data.size * 8 == array.size


def test_kernels_run_on_each_devices_part(model, on_one, on_eight, monkeypatch):
    """In the engine's own programs; the kernel's part is XLA's here."""
    parts = []

    def kernel(table, length, return_logits, **arrays):
        parts.append(table.shape[:2])
        return ragged_decode(**arrays, return_logits=return_logits)

    monkeypatch.setattr(op, "_mosaic_tpu", kernel)
    monkeypatch.setattr(op, "fits", lambda meant, *_: meant == "tpu")
    monkeypatch.setattr(op, "by_platform", lambda xla, sm90, tpu: tpu)
    jax.clear_caches()  # programs that were traced without the kernel
    rows = len(LENGTHS)
    assert answers(model, on_eight["adakv"]) == answers(tiny_model(), on_one["adakv"])
    assert set(parts) == {(rows // 4, 1), (rows, GROUPS)}
    jax.clear_caches()


def test_prompts_go_on_alike(model):
    row, prompts = method("adakv", keep=KEEP), tiny_prompts()[1:5]
    ours, theirs = (
        compress(
            on,
            [prompt[30:] for prompt in prompts],
            row,
            cache=compress(on, [p[:30] for p in prompts], row, groups=GROUPS),
            groups=GROUPS,
        )
        for on in (model, tiny_model())
    )
    for layer in range(CONFIG.layers):
        assert same_positions(ours.positions[layer], theirs.positions[layer])
    for pages in ours.layers:
        for array in pages.entry:
            assert {8 * s.data.size for s in array.addressable_shards} == {array.size}


@UNLIKE_ROW
def test_budgets_sum_in_each_group(name, on_eight):
    row = method(name, keep=KEEP)
    calibrated = {kind: calibration(tiny_model(), kind) for kind in row.calibrations}
    heads = Heads(CONFIG.layers, CONFIG.kv_heads, calibrated)
    slots, _ = row_slots(row, heads, np.array(LENGTHS), 1)
    budget = slots.reshape(*slots.shape[:2], GROUPS, -1).sum(axis=3)  # [L, B, J]
    for i, pages in enumerate(on_eight[name].pools):
        by_group = np.asarray(pages.length).sum(axis=(2, 3))
        mine = budget[i : i + 1] if pages.span == 1 else budget
        np.testing.assert_array_equal(by_group, mine.sum(axis=0))


@pytest.mark.parametrize("axis", AXES)
def test_each_axis_alone_gives_the_tokens_of_one_device(axis, on_one):
    mesh = make_mesh(f"{axis}=2", "auto", jax.devices()[:2])
    model = on(mesh)
    groups = None if axis == "tensor" else GROUPS  # as many, by itself or as asked for
    for name, ours in caches(model, ROWS, groups).items():
        assert ours.pools[0].table.shape[1] == GROUPS
        for layer in range(CONFIG.layers):
            theirs = on_one[name].positions[layer]
            assert same_positions(ours.positions[layer], theirs)
        if name in ("full", "adakv", "kvzip"):  # pools unlike each other
            assert answers(model, ours) == answers(tiny_model(), on_one[name])


def test_rows_that_do_not_divide(model):
    """Three prompts on four places, with a seed each, and questions of one cache."""
    prompts, row = tiny_prompts()[1:4], method("snapkv", keep=KEEP)
    how = {"sample": Sample(temperature=1.0), "seed": [5, 6, 7], "max_new_tokens": NEW}
    said = []
    for on in (model, tiny_model()):
        whole = generate(on, prompts, method=row, **how)
        one = compress(on, prompts[2], row, groups=GROUPS)
        asked = [prompt[:5] for prompt in prompts]
        said.append((whole, generate(on, asked, cache=one, **how)))
    assert said[0] == said[1]
    assert [len(rows) for rows in said[0]] == [len(prompts)] * 2


def test_a_mesh_of_explicit_axes_is_refused():
    mesh = make_mesh("data=2,tensor=4", "explicit", jax.devices()[:8])
    with pytest.raises(ValueError, match="mesh of Explicit axes.*load it with a mesh"):
        generate(on(mesh), tiny_prompts()[0], method=method("full"))
