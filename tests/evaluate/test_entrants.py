"""Entrants: the rows of a comparison, and why one cannot take part."""

from dataclasses import replace

import pytest
from flax import nnx
from jaxkv.configs.evals.core import SUITE

from jaxkv.budget.uniform import Uniform
from jaxkv.evaluate.entrants import calibrated, entrants
from jaxkv.evaluate.tasks import TASKS
from jaxkv.method import Method, names
from jaxkv.models.decoder import Decoder
from jaxkv.score.noise import Noise
from jaxkv.select.top_k import TopK
from jaxkv.train.tokenizer import word_tokenizer
from tests.tiny import CONFIG


def test_all_methods_with_full_first():
    rows = entrants(["all"], (0.12,))
    assert rows[0].name == "full" and {row.name for row in rows} == set(names())


def test_a_core_of_methods_when_none_is_named():
    rows = [row.name for row in entrants(None, (0.12,))]
    assert rows == list(SUITE.methods) and rows[0] == "full"
    assert set(rows) <= set(names()) and set(SUITE.tasks) <= set(TASKS)


def test_all_and_rows_of_ones_own():
    own = Method(score=Noise(), budget=Uniform(), select=TopK())
    rows = entrants(["all", ("mine", own), "snapkv"], (0.25,))
    assert [row.name for row in rows] == [
        *(r.name for r in entrants(["all"], (0.25,))),
        "mine",
    ]
    assert rows[-1].method == replace(own, keep=0.25)
    assert entrants({"mine": own}, (0.25,)) == rows[-1:]


def test_two_methods_of_one_name_are_refused():
    own = Method(score=Noise(), budget=Uniform(), select=TopK())
    with pytest.raises(ValueError, match="Two methods are called 'snapkv'"):
        entrants(["snapkv", ("snapkv", own)], (0.25,))


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_bad_keep_of_ones_own_method_is_refused(keep):
    own = Method(score=Noise(), budget=Uniform(), select=TopK())
    with pytest.raises(ValueError, match=f"keep={keep}"):
        entrants({"mine": own}, (keep,))


def test_a_row_without_its_calibration_says_so(monkeypatch):
    def none(model, kind, tokenizer, progress):
        raise ValueError(f"There are no {kind} of this model.")

    monkeypatch.setattr("jaxkv.evaluate.entrants.calibration", none)
    model = nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))
    rows = entrants(["full", "qfilters"], (0.25,))
    rows = calibrated(rows, model, word_tokenizer())
    assert [row.excuse(1000) for row in rows] == [
        *("", "There are no query_filters of this model.")
    ]


def test_the_same_row_twice_is_one():
    assert len(entrants(["random", "random"], (0.5, 0.5))) == 1


def test_a_row_says_what_it_holds_at_least():
    (row,) = entrants(["snapkv(window=64)"], (0.1,))
    assert row.excuse(1000) == ""
    assert row.excuse(500) == "holds 64 slots at least, keep 0.128"


def test_full_takes_part_at_any_length():
    (row,) = entrants(["full"], (0.001, 0.5))
    assert row.keep == 1 and row.excuse(10) == ""
