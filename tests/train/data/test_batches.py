"""Every row once an epoch and once a run, whatever the processes and the stops."""

import json
from collections import Counter

import numpy as np
import pytest

from jaxkv.evaluate.language import NOUNS
from jaxkv.train.data import Tasks, TextFiles
from jaxkv.train.data.batches import batches
from tests.train.data.reading import TOKENIZER, take

DOCUMENTS = tuple(f"the calm fox sends {noun} ." for noun in NOUNS[:50])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return TextFiles((str(path),), separator="\n\n")


def _run(source, states, stops, rows, count):
    """Batches by process, stopped and gone on with at `stops`, and the last state."""
    made = [[] for _ in range(count)]
    for steps in stops:
        for i in range(count):
            iterator = batches(
                source,
                rows=rows,
                length=16,
                tokenizer=TOKENIZER,
                process_index=i,
                process_count=count,
            )
            if states:
                iterator.set_state(json.loads(json.dumps(states[0])))
            made[i] += [next(iterator) for _ in range(steps)]
            last = iterator.get_state()
            iterator.close()
            if i == 0:
                reached = last
            assert last == reached  # any process's state serves all
        states = [reached]
    return made, states


def _by_index(made):
    found = {}
    for batch in (batch for process in made for batch in process):
        for i, index in enumerate(batch["index"].tolist()):
            assert index not in found
            found[index] = {name: batch[name][i] for name in batch}
    return found


def test_a_batch_is_as_the_loop_expects_it(source):
    (batch,) = take(source, rows=3, length=16)
    kinds = {name: (values.dtype, values.shape) for name, values in batch.items()}
    wide = {"tokens": "i4", "segment": "i4", "position": "i4", "weight": "f4"}
    assert kinds == {
        **{name: (np.dtype(kind), (3, 16)) for name, kind in wide.items()},
        "index": (np.dtype("i8"), (3,)),
    }
    for segment, position, weight in zip(
        batch["segment"], batch["position"], batch["weight"], strict=True
    ):
        for number in range(1, segment.max() + 1):
            here = segment == number
            assert position[here].tolist() == list(range(here.sum()))
            assert weight[here].tolist() == [0, *[1] * (here.sum() - 1)]
        assert not weight[segment == 0].any()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_epoch_has_every_document_once(source, count):
    """Fifty documents of seven tokens, two a row: 25 rows, here in steps of six."""
    made, _ = _run(source, [], [9], 6 // count, count)
    found = _by_index(made)
    assert sorted(found) == list(range(54))
    orders = []
    for first in (0, 25):
        rows = [found[i] for i in range(first, first + 25)]
        said = Counter()
        for row in rows:
            for segment in (1, 2):
                ids = row["tokens"][row["segment"] == segment]
                said[TOKENIZER.decode(ids.tolist())] += 1
        assert said == Counter(DOCUMENTS)
        orders.append([row["tokens"].tolist() for row in rows])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_stops_change_nothing(source):
    whole, end = _run(source, [], [20], 4, 1)
    stopped, same = _run(source, [], [1, 4, 2, 6, 7], 4, 1)
    assert same == end == [{"global_next_index": 80}]
    for ours, theirs in zip(whole[0], stopped[0], strict=True):
        assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize(("rows", "count"), [(2, 2), (1, 4), (4, 2)])
def test_a_state_goes_on_with_other_processes_and_rows(source, rows, count):
    before, states = _run(source, [], [3], 4, 1)
    after, _ = _run(source, states, [2, 1], rows, count)
    found = _by_index(before + after)
    assert sorted(found) == list(range(12 + 3 * rows * count))
    alone = _by_index(_run(source, [], [9], 4, 1)[0])
    for index, row in found.items():
        assert all((row[name] == alone[index][name]).all() for name in row)


def test_a_seed_is_an_order(source):
    orders = [
        [tuple(batch["tokens"][0]) for batch in take(source, 10, length=16, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_process_0_alone_tells_what_it_read(source, capsys):
    for i in range(2):
        take(source, process_index=i, process_count=2, length=16)
    assert capsys.readouterr().err == (
        f"{source.paths[0]}: documents 50, tokens 350, rows of 16 an epoch 25, "
        "padding 12.5%\n"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, "rows=0; give one at least"),
        ({"process_index": 2, "process_count": 2}, "not one of 2 processes"),
        ({"seed": -1}, "seed=-1; give 0 or more"),
        ({"tokenizer": None}, "give the model's vocabulary"),
        ({"tokenizer": None, "vocabulary": 9}, "text needs a tokenizer"),
        ({"vocabulary": 20}, "outside the model's vocabulary of 20"),
    ],
)
def test_wrong_arguments_are_told(source, changed, message):
    with pytest.raises(ValueError, match=message):
        take(source, **changed)


def test_tasks_need_a_tokenizer():
    with pytest.raises(ValueError, match="Tasks need a tokenizer"):
        take(Tasks(), tokenizer=None, vocabulary=512)
