"""Generation: batches equal single runs, few programs, copies for questions, errors."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv import phases
from jaxkv.generate import begin, compress, generate, stream
from jaxkv.method import method
from jaxkv.phases import _decode, decode, feed_donated
from jaxkv.prefill import see_layer
from jaxkv.prompts import bucket
from jaxkv.sample import Sample
from tests.tiny import CONFIG, KEEP, LENGTHS, tiny_model, tiny_prompts

PROMPTS = tiny_prompts()
NEW = 8
SNAPKV = method("snapkv", keep=KEEP)


def tokens_of(prompts, row=SNAPKV, **changes):
    return generate(tiny_model(), prompts, method=row, max_new_tokens=NEW, **changes)


@pytest.fixture(scope="module")
def snapkv_tokens():
    return tokens_of(PROMPTS)


@pytest.fixture(scope="module")
def cache():
    """Two compressed prompts, one below the window, with room for 40 tokens."""
    return compress(tiny_model(), [PROMPTS[0], PROMPTS[3]], SNAPKV, headroom=40)


@pytest.mark.parametrize("name", ["snapkv", "adakv", "random"])
def test_a_padded_batch_equals_single_runs(name):
    """From prompt to tokens; tests/test_model_laws.py holds rows to it."""
    row = method(name, keep=KEEP)
    together = tokens_of(PROMPTS, row)
    assert together == [tokens_of([prompt], row)[0] for prompt in PROMPTS]
    assert len({tuple(row) for row in together}) > len(LENGTHS) // 2


def test_twenty_lengths_compile_at_most_three_times(caplog):
    """One length of each bucket compiles; seventeen more lengths compile nothing."""
    lengths = np.linspace(20, 2000, 20).astype(int).tolist()
    first = [lengths[0], lengths[6], lengths[-1]]
    assert [bucket(n) for n in first] == [512, 1024, 2048]
    prompts = dict(zip(lengths, tiny_prompts(lengths), strict=True))
    programs = (see_layer, feed_donated, _decode)
    before = [program._cache_size() for program in programs]
    for n in first:
        tokens_of([prompts.pop(n)])
    made = [p._cache_size() - n for p, n in zip(programs, before, strict=True)]
    # Layers share a program, but for the last, whose hidden states nothing reads.
    assert made <= [2 * 3, 3, 3]
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.DEBUG):
            for prompt in prompts.values():
                tokens_of([prompt])
    finally:
        jax.config.update("jax_log_compiles", False)
    assert not [r.message for r in caplog.records if "XLA compilation" in r.message]
    after = [p._cache_size() - n for p, n in zip(programs, before, strict=True)]
    assert after == made


def test_streaming_gives_what_generate_gives(snapkv_tokens):
    rows = [[] for _ in PROMPTS]
    chunks = 0
    for chunk in stream(
        tiny_model(), PROMPTS, method=SNAPKV, max_new_tokens=NEW, chunk=3
    ):
        chunks += 1
        for row, new in zip(rows, chunk, strict=True):
            assert len(new) <= 3
            row.extend(new)
    assert rows == snapkv_tokens
    assert chunks == 3


@pytest.mark.parametrize("row", [SNAPKV, method("tova", keep=KEEP)], ids=str)
def test_looking_seldom_changes_nothing(row, monkeypatch):
    """A GPU's loop asks every few steps whether all is done, also past the last."""
    options = dict(max_new_tokens=11, stop_tokens=[3, 5, 8])
    often = generate(tiny_model(), PROMPTS, method=row, **options)
    monkeypatch.setattr(phases, "STEPS_BETWEEN", {"cpu": 8})
    _decode.clear_cache()
    seldom = generate(tiny_model(), PROMPTS, method=row, **options)
    _decode.clear_cache()
    assert seldom == often


def test_stop_tokens_end_a_row_and_are_not_returned(snapkv_tokens):
    stop = snapkv_tokens[4][3]
    cut = [row[: row.index(stop)] if stop in row else row for row in snapkv_tokens]
    assert tokens_of(PROMPTS, stop_tokens=[stop]) == cut
    assert any(len(row) < NEW for row in cut) and any(len(row) == NEW for row in cut)


def test_the_models_own_stop_tokens_are_the_default(snapkv_tokens):
    stop = snapkv_tokens[0][0]
    other = nnx.merge(*nnx.split(tiny_model()))
    other.config = replace(CONFIG, stop_tokens=(stop,))
    assert generate(other, PROMPTS[:1], method=SNAPKV, max_new_tokens=NEW) == [[]]


def test_every_token_comes_from_the_compressed_cache(cache):
    """The first answer too: with the kept entries gone, the logits are others."""
    questions = [PROMPTS[0][-1:], PROMPTS[3][-1:]]
    model = tiny_model()

    def first_logits(cache):
        return begin(model, questions, None, cache, NEW).logits

    def without(pages):
        return replace(pages, entry=jax.tree.map(jnp.zeros_like, pages.entry))

    emptied = replace(cache, pools=tuple(without(pages) for pages in cache.pools))
    gap = jnp.abs(first_logits(cache) - first_logits(emptied)).max(axis=-1)
    assert (gap > 0.1).all()


def test_the_last_prompt_token_is_fed_not_stored():
    turn = begin(tiny_model(), PROMPTS, SNAPKV, None, NEW)
    for b, n in enumerate(LENGTHS):
        for layer in turn.cache.positions:
            for positions in layer[b]:
                assert len(positions) == SNAPKV.slots(n)  # the fed token counts
                assert positions[-1] == n - 1
    np.testing.assert_array_equal(turn.cache.next_position, LENGTHS)


def test_questions_to_a_cache_equal_one_prompt_uncut():
    """With everything kept, context then question is context plus question."""
    full, (context, question) = method("full"), (PROMPTS[4][:-7], PROMPTS[4][-7:])
    cache = compress(tiny_model(), context, full, headroom=40)
    ask = dict(cache=cache, max_new_tokens=NEW)
    answer = generate(tiny_model(), [question], **ask)
    assert answer == tokens_of([PROMPTS[4]], full)
    other = PROMPTS[1][:5]
    both = generate(tiny_model(), [question, other], **ask)  # a copy for each
    assert both[0] == answer[0]
    assert both[1] == generate(tiny_model(), [other], **ask)[0]
    np.testing.assert_array_equal(cache.next_position, [193])


def test_a_prompt_shorter_than_the_window_is_kept_whole(cache):
    assert (cache.lengths[:, 0] == LENGTHS[0]).all()
    assert (cache.lengths[:, 1] == SNAPKV.score.window).all()
    for layer in cache.positions:
        for positions in layer[0]:
            np.testing.assert_array_equal(positions, np.arange(LENGTHS[0]))


def test_sampling_is_keyed_by_row():
    sample = Sample(temperature=1.0)
    seeds = [5, 6, 7, 6, 5, 4, 3, 2]
    drawn = tokens_of(PROMPTS, sample=sample, seed=seeds)
    assert drawn == tokens_of(PROMPTS, sample=sample, seed=seeds)
    assert tokens_of([PROMPTS[3]], sample=sample, seed=[6])[0] == drawn[3]
    assert tokens_of([PROMPTS[3]], sample=sample, seed=6)[0] == drawn[3]
    assert tokens_of([PROMPTS[3]], sample=sample, seed=7)[0] != drawn[3]


def test_a_cache_never_overflows_when_its_room_is_kept(cache):
    assert cache.room >= 40
    turn = begin(tiny_model(), [[1, 2]] * 2, None, cache, cache.room - 2)
    turn, _ = decode(tiny_model(), turn, cache.room - 2, Sample(), ())
    assert turn.cache.room == 0
    assert not turn.cache.overflow


ERRORS = {
    "a full pool": (
        lambda cache: generate(
            tiny_model(), [[1, 2]] * 2, cache=cache, max_new_tokens=cache.room - 1
        ),
        "The cache has room for .* more tokens, and the question and answer may take",
    ),
    "as many questions as sequences": (
        lambda cache: generate(tiny_model(), [[1]] * 3, cache=cache),
        "holds 2 sequences and there are 3 questions",
    ),
    "a prompt beyond the context": (
        lambda cache: tokens_of([[1] * 2049]),
        "has 2049 tokens, and the model takes 2048",
    ),
    "an answer beyond the context": (
        lambda cache: tokens_of([[1] * 2045]),
        "2045 prompt tokens and 8 new ones pass the model's context of 2048",
    ),
    "a bad token": (lambda cache: tokens_of([[1], [64]]), "Token id 64 of prompt 1"),
    "a bad token in a question": (
        lambda cache: generate(tiny_model(), [[-3], [1]], cache=cache),
        "Token id -3 of prompt 0",
    ),
    "an empty prompt": (lambda cache: tokens_of([]), "The prompt is empty"),
    "an empty row": (lambda cache: tokens_of([[1], []]), "Prompt 1 is empty"),
    "groups": (
        lambda cache: tokens_of([[1]], groups=3),
        "groups=3 does not divide the model's 4 kv heads",
    ),
    "headroom": (
        lambda cache: compress(tiny_model(), [1], SNAPKV, headroom=0),
        "headroom=0",
    ),
    "no new tokens": (
        lambda cache: generate(tiny_model(), [1], method=SNAPKV, max_new_tokens=0),
        "max_new_tokens=0",
    ),
    "method and cache": (
        lambda cache: generate(tiny_model(), [1], method=SNAPKV, cache=cache),
        "either a method or a cache",
    ),
    "neither": (lambda cache: generate(tiny_model(), [1]), "a method or a cache"),
    "seeds": (
        lambda cache: tokens_of(PROMPTS, seed=[1, 2, 3]),
        "There are 3 seeds for 8",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_sentence(case, cache):
    run, said = ERRORS[case]
    with pytest.raises(ValueError, match=said) as error:
        run(cache)
    assert "\n" not in str(error.value)
