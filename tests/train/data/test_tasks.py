"""Samples are the tasks' own, each by its number, and only answers weigh."""

import numpy as np
import pytest

from jaxkv.evaluate.tasks import TASKS, task
from jaxkv.evaluate.trials import draw
from jaxkv.train.data import Tasks
from tests.train.data.reading import TOKENIZER, documents, opening, take


def test_every_task_fits_its_length_with_its_answer():
    rows = Tasks(lengths=(200, 300)).rows(opening(500))
    found = documents(rows[i] for i in range(20))
    assert 20 <= len(found) <= 60
    for text, weighs in found:
        assert text.endswith(weighs) and weighs and len(text.split()) <= 300
        assert text.startswith("<bos>") and text.count("<bos>") == 1


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_weighs_is_the_ideal_answer(name):
    """What is asked can be graded from the answer, as in an evaluation."""
    rows = Tasks((name,), lengths=(256,)).rows(opening(256))
    for text, weighs in documents([rows[3]]):
        said = text.removesuffix(weighs).split()
        assert len(said) > 150 and len(weighs.split()) <= 100


def test_no_length_fills_the_row_with_one_sample():
    (batch,) = take(Tasks(("single_needle_dense",)), rows=4, length=256)
    assert (batch["segment"].max(axis=1) == 1).all()
    assert ((batch["segment"] > 0).sum(axis=1) > 180).all()


def test_rows_are_functions_of_seed_and_number():
    first, again, other = (
        take(Tasks(("two_hop",), (128,)), 3, seed=seed, length=256)
        for seed in (3, 3, 4)
    )
    tokens = [[b["tokens"].tolist() for b in made] for made in (first, again, other)]
    assert tokens[0] == tokens[1] != tokens[2]
    assert len({str(row) for row in tokens[0]}) == 3


def test_no_sample_is_one_of_an_evaluation():
    trials = draw(TOKENIZER, [task("single_needle")], 96, 20, 0)
    evaluated = {TOKENIZER.decode(list(trial.context_ids)) for trial in trials}
    rows = Tasks(("single_needle",), (128,)).rows(opening(128))
    trained = {
        text.split(" recall")[0] for text, _ in documents(rows[i] for i in range(20))
    }
    assert len(trained) == 20 and len(evaluated) == 20 and not trained & evaluated


def test_numbers_may_be_any_of_a_long_run():
    rows = Tasks(("single_needle",), (64,)).rows(opening(64))
    assert np.any(rows[10**12]["tokens"] != rows[10**12 + 1]["tokens"])


def test_faults_are_told():
    with pytest.raises(ValueError, match="No task named 'nothing'; known: "):
        Tasks(("nothing",))
    with pytest.raises(ValueError, match="does not fit into .* tokens; give more"):
        Tasks(("two_hop",), (48,)).rows(opening(64))
    with pytest.raises(ValueError, match="A sample of 128 tokens is longer than a row"):
        Tasks(("two_hop",), (128,)).rows(opening(64))
    with pytest.raises(ValueError, match="task two_hop is outside .* of 100"):
        Tasks(("two_hop",), (128,)).rows(opening(128, vocabulary=100))
