"""Batches: one shape a bucket, answers of like length together, every trial once."""

from dataclasses import replace

import numpy as np
import pytest

from jaxkv.evaluate.tasks import TASKS
from jaxkv.evaluate.trials import batches, draw, shortest
from jaxkv.train.tokenizer import word_tokenizer

TOKENIZER = word_tokenizer()
SETTINGS = ("aware", "agnostic")


@pytest.fixture(scope="module")
def trials():
    tasks = [TASKS["single_needle"], TASKS["multi_query"]]
    return draw(TOKENIZER, tasks, 200, 3, 0)


def _batches(trials, setting, size=4):
    return batches(trials, setting, size, 512, 8192)


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_shape_for_all_batches_of_a_length(trials, setting):
    made = _batches(trials, setting)
    asked = {ask.tokens.token_ids.shape for b in made for ask in b.asks}
    assert len({b.shape for b in made}) == len(asked) == 1
    named = [t.key for b in made for ask in b.asks for t in ask.trials if t]
    assert sorted(named) == sorted(t.key for t in trials)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_row_is_the_prompt_of_its_trial(trials, setting):
    made = _batches(trials, setting)
    for trial in trials:
        ((batch, row),) = [(b, b.row(trial)) for b in made if b.row(trial) is not None]
        ids = trial.prompt_ids if setting == "aware" else trial.context_ids
        found = batch.prompts.token_ids[row, : batch.prompts.lengths[row]]
        np.testing.assert_array_equal(found, ids)


def test_long_answers_do_not_slow_the_others(trials):
    long = [replace(t, steps=60) if t.sample == 1 else t for t in trials]
    made = _batches(long, "aware", size=2)
    slow = [b for b in made if any(ask.steps == 60 for ask in b.asks)]
    assert len(slow) == 2 and len(made) == 6


@pytest.mark.parametrize("setting", SETTINGS)
def test_lengths_of_other_buckets_have_batches_of_their_own(trials, setting):
    short, long = trials[0], trials[2]
    long = replace(long, context_ids=long.context_ids * 4)
    made = _batches([short, long], setting)
    assert [b.shape for b in made] == [(1, 512), (1, 1024)]
    assert shortest(made) == int(made[0].prompts.lengths[0])


def test_questions_of_one_context_share_a_cache(trials):
    one, other = trials[0], replace(trials[1], task="another", sample=7)
    (batch,) = _batches([one, other], "agnostic")
    assert batch.shape == (1, 512) and len(batch.asks) == 2
    assert len(_batches([one, other], "aware")[0].prompts.lengths) == 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_future_follows_what_is_stored(trials, setting):
    """Stored tokens and the future, one after the other, are the whole dialogue."""
    (batch,) = _batches(trials[:2], setting)
    for row in range(batch.real):
        stored = batch.prompts.lengths[row] - batch.rerun
        future = batch.future.token_ids[row, : batch.future.lengths[row]]
        whole = [*batch.prompts.token_ids[row, :stored], *future]
        asked = trials[row : row + 1] if setting == "aware" else trials[:2]
        said = [i for t in asked for i in (*t.question_ids, *t.answer_ids)]
        assert whole == [*trials[0].context_ids, *said]


def test_steps_hold_the_ideal_answer(trials):
    needles = [t for t in trials if t.task == "single_needle"]
    words = [len(t.references[0].split()) for t in needles]
    assert [t.steps for t in needles] == [n + 1 + 2 for n in words]  # "." and two
    assert [len(t.answer_ids) for t in needles] == [n + 1 for n in words]


def test_depth_is_where_the_fact_stands(trials):
    for trial in trials:
        assert 0 <= trial.depth < 1
        if len(trial.references) == 1:  # the sentence begins before its value
            start = round(trial.depth * len(trial.context))
            assert trial.references[0] in trial.context[start : start + 120]
