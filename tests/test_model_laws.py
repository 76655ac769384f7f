"""Every row of configs/methods obeys the laws through a model.

Rows whose pools and programs are alike share the longer tests.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.calibrate.store import calibration
from jaxkv.generate import generate
from jaxkv.heads import Heads
from jaxkv.method import method
from jaxkv.pools import row_slots
from jaxkv.prefill import prefill
from jaxkv.prompts import pad
from tests.laws import poisoned, same_positions
from tests.tiny import (
    CONFIG,
    KEEP,
    LENGTHS,
    all_rows,
    tiny_model,
    tiny_prompts,
    unlike,
    usable,
)

USABLE_ROW = pytest.mark.parametrize("name", usable())
UNLIKE_ROW = pytest.mark.parametrize("name", unlike())
SOME = (0, 3, 5, 7)  # prompts that are run alone
NEW = 6  # tokens generated
QUESTION = [5, 9, 33]


def caches(prompts, rows):
    """Each row's cache from one prefill, the last token of a prompt left to be fed."""
    padded = pad(prompts, CONFIG.vocabulary, CONFIG.max_position)
    made = prefill(tiny_model(), padded, rows, headroom=32, rerun=1)
    return dict(zip(usable(), made, strict=True))


@pytest.fixture(scope="module")
def batch():
    return caches(tiny_prompts(), all_rows())


@pytest.fixture(scope="module")
def alone():
    """Caches of single runs, by prompt."""
    rows = tuple(method(name, keep=KEEP) for name in unlike())
    prompts = {i: pad([tiny_prompts()[i]], CONFIG.vocabulary, 2048) for i in SOME}
    return {
        i: dict(
            zip(
                unlike(),
                prefill(tiny_model(), prompt, rows, headroom=32, rerun=1),
                strict=True,
            )
        )
        for i, prompt in prompts.items()
    }


@pytest.fixture(scope="module")
def uncut():
    return caches(tiny_prompts(), all_rows(1.0))


@pytest.fixture(scope="module")
def expected():
    """Greedy tokens of the model's own forward pass, nothing cached."""
    model, rows = jax.jit(lambda m, ids: m(ids)), tiny_prompts()
    ids = np.zeros((len(rows), max(LENGTHS) + NEW), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    at, every = np.array(LENGTHS), np.arange(len(rows))
    for step in range(NEW):
        logits = np.asarray(model(tiny_model(), ids))[every, at + step - 1]
        ids[every, at + step] = logits.argmax(axis=-1)
    return [ids[i, n : n + NEW].tolist() for i, n in enumerate(LENGTHS)]


def answers(cache, prompts):
    """The cache goes on from each prompt's last token."""
    last = [prompt[-1:] for prompt in prompts]
    return generate(tiny_model(), last, cache=cache, max_new_tokens=NEW)


@USABLE_ROW
def test_full_budget_generates_what_the_model_does(name, uncut, expected):
    found = answers(uncut[name], tiny_prompts())
    # A row that evicts at every step holds no more than the prompt's tokens: the first
    # new token comes from all of them.
    n = 1 if method(name).when == "step" else NEW
    assert [row[:n] for row in found] == [row[:n] for row in expected]
    assert len({tuple(row) for row in expected}) == len(expected)  # not degenerate


@UNLIKE_ROW
def test_row_of_a_padded_batch_equals_its_single_run(name, batch, alone):
    together = answers(batch[name], tiny_prompts())
    for i, prompt in [(i, tiny_prompts()[i]) for i in SOME]:
        single = alone[i][name]
        for layer in range(CONFIG.layers):
            ours = batch[name].positions[layer][i : i + 1]
            assert same_positions(ours, single.positions[layer])
        assert answers(single, [prompt]) == [together[i]]


@USABLE_ROW
def test_slots_held_are_slots_budgeted(name, batch):
    row, model = method(name, keep=KEEP), tiny_model()
    calibrated = {kind: calibration(model, kind) for kind in row.calibrations}
    heads = Heads(CONFIG.layers, CONFIG.kv_heads, calibrated)
    slots, _ = row_slots(row, heads, np.array(LENGTHS), 1)  # [L, B, K]
    lengths = batch[name].lengths
    axes = (0, 2) if row.budget.model_wide else 2
    np.testing.assert_array_equal(lengths.sum(axis=axes), slots.sum(axis=axes))
    total = CONFIG.layers * CONFIG.kv_heads * np.array([row.slots(n) for n in LENGTHS])
    assert ((slots + 1).sum(axis=(0, 2)) <= total).all()


@USABLE_ROW
def test_bytes_and_entries_are_bounded(name, batch):
    cache = batch[name]
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert cache.cache_bytes + cache.headroom_bytes == arrays
    assert cache.cache_bytes > 0 and cache.headroom_bytes > 0
    row, page = method(name, keep=KEEP), cache.layers[0].page
    kept = np.array([row.slots(n) for n in LENGTHS])
    held_pages = -(-cache.lengths // page)  # pages with a slot in use
    slots = held_pages.sum(axis=(0, 2)) * page
    heads = CONFIG.layers * CONFIG.kv_heads
    assert (slots <= heads * (kept + page)).all()
    if name != "full" and row.minimum(512) <= KEEP * 512:
        full = heads * LENGTHS[-1]
        assert slots[-1] <= KEEP * full + heads * page


@UNLIKE_ROW
def test_questions_do_not_disturb_each_other(name, batch):
    cache = batch[name]
    before = [np.array(leaf) for leaf in jax.tree.leaves(cache)]
    ask = [QUESTION] * len(LENGTHS)
    first = generate(tiny_model(), ask, cache=cache, max_new_tokens=NEW)
    generate(tiny_model(), [[1, 2]] * len(ask), cache=cache, max_new_tokens=NEW)
    assert generate(tiny_model(), ask, cache=cache, max_new_tokens=NEW) == first
    for old, new in zip(before, jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(old, new)


@UNLIKE_ROW
def test_empty_slots_do_not_change_an_answer(name, batch):
    dirty = replace(
        batch[name], pools=tuple(poisoned(pages) for pages in batch[name].pools)
    )
    assert answers(dirty, tiny_prompts()) == answers(batch[name], tiny_prompts())


def test_random_draws_differ_by_seed_and_by_sequence(batch):
    first = batch["random"].positions[0]
    assert not same_positions(first[6:7], first[7:8])
    padded = pad(tiny_prompts(), CONFIG.vocabulary, CONFIG.max_position)
    args = tiny_model(), padded, all_rows()
    other = prefill(*args, headroom=32, rerun=1, seed=1)[usable().index("random")]
    assert not same_positions(first, other.positions[0])
    assert jnp.array_equal(other.layers[0].length, batch["random"].layers[0].length)
