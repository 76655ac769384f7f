"""compare on the demo model: one prefill, paired scores, honest bytes, whole files."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import jaxkv
from jaxkv.budget.uniform import Uniform
from jaxkv.evaluate.compare import compare
from jaxkv.evaluate.measure import FULL, full_bytes
from jaxkv.evaluate.show import print_table
from jaxkv.evaluate.tasks import TASKS
from jaxkv.evaluate.trials import batches, draw
from jaxkv.method import Method
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.prefill import prefill
from jaxkv.score.noise import Noise
from jaxkv.select.top_k import TopK
from jaxkv.train.tokenizer import word_tokenizer

METHODS = ["full", "snapkv", "random", "snapkv(window=200)"]
FIELDS = {
    *("method", "keep", "question", "tasks", "n", "score", "ci95", "cache_bytes"),
    *("headroom_bytes", "full_cache_bytes", "prefill_s", "decode_step_s", "compile_s"),
}


@pytest.fixture(scope="module")
def demo():
    return jaxkv.load("demo")


@pytest.fixture(scope="module")
def tiny():
    """A model of one layer that knows nothing."""
    config = DecoderConfig(
        width=16, feed_forward=16, layers=1, query_heads=2, kv_heads=1, head_dim=8
    )
    return Decoder(config, rngs=nnx.Rngs(0)), word_tokenizer()


@pytest.fixture(scope="module")
def table(demo):
    tasks = ["single_needle", "multi_query"]
    sizes = {"context": (256,), "samples": 3, "tasks": tasks, "batch": 4}
    return compare(demo, METHODS, (0.5,), **sizes, perplexity=False)


@pytest.fixture(scope="module")
def rows(table):
    return {(row.method, row.question): row for row in table.rows}


def test_every_row_of_both_settings(rows):
    assert list(rows) == [(m, q) for q in ("aware", "agnostic") for m in METHODS]
    full = rows["full", "aware"]
    assert full.n == 12 and list(full.tasks) == ["single_needle", "multi_query"]


def test_full_retrieves_and_random_does_not(rows):
    for question in ("aware", "agnostic"):
        assert rows["full", question].score == 1
        assert rows["random", question].score < 0.5


def test_snapkv_needs_to_know_the_question(rows):
    aware, agnostic = rows["snapkv", "aware"], rows["snapkv", "agnostic"]
    assert aware.score > 0.6 and agnostic.score < aware.score - 0.2


def test_a_row_below_its_minimum_says_why(rows):
    row = rows["snapkv(window=200)", "aware"]
    assert row.score is None and row.cache_bytes is None
    assert row.note.startswith("holds 200 slots at least")


def test_slots_held_are_those_asked_for(rows):
    for question in ("aware", "agnostic"):
        row = rows["snapkv", question]
        assert 0.49 < row.keep_held <= 0.5
        assert row.cache_bytes < 0.7 * row.full_cache_bytes
        full = rows["full", question]
        assert full.cache_bytes == full.full_cache_bytes and full.keep_held == 1


def test_full_bytes_are_those_of_a_full_cache(tiny):
    model, tokenizer = tiny
    trials = draw(tokenizer, [TASKS["multi_key"]], 200, 2, 0)
    (batch,) = batches(trials, "aware", 4, model.config.vocabulary, 8192)
    (cache,) = prefill(model, batch.prompts, (FULL,), headroom=64, rerun=1)
    assert full_bytes(model, batch, 64) == cache.cache_bytes / 4


def test_intervals_hold_the_score(rows):
    for (_, question), row in rows.items():
        if row.score is not None:
            assert row.ci95[0] <= row.score <= row.ci95[1]
            low, high = row.difference_ci95
            assert low <= row.difference <= high
            full = rows["full", question].score
            assert row.difference == pytest.approx(row.score - full)


def test_times_are_positive(rows):
    ran = [row for row in rows.values() if row.score is not None]
    assert all(row.prefill_s > 0 and row.decode_step_s > 0 for row in ran)
    assert rows["full", "aware"].compile_s > 0


def test_scores_are_those_of_the_answers(table, rows):
    for (method, question), row in rows.items():
        found = [
            answer.score
            for answer in table.answers
            if (answer.method, answer.question) == (method, question)
        ]
        assert len(found) == row.n
        if found:
            assert np.mean(found) == pytest.approx(row.score)


def test_save_writes_whole_files(table, tmp_path):
    out = tmp_path / "new" / "out"
    table.save(out)
    names = sorted(path.name for path in out.iterdir())
    data_files = ["answers.jsonl", "compare.json", "kept.json", "report.html"]
    assert sorted({*names} - {n for n in names if n.endswith(".png")}) == data_files
    assert {"compare.png", "scores.png", "kept_aware.png", "latency.png"} <= {*names}
    data = json.loads((out / "compare.json").read_text())
    assert data["schema"] == 1 and data["dtype"] == "float32" and data["seed"] == 0
    assert {"model", "context", "device", "version", "command"} <= set(data)
    assert len(data["rows"]) == 8 and all(set(row) >= FIELDS for row in data["rows"])
    lines = (out / "answers.jsonl").read_text().splitlines()
    assert len(lines) == len(table.answers)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_save_into_a_file_is_refused(table, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match="taken"):
        table.save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_full_has_one_row_whatever_the_keeps(tiny):
    table = compare(
        tiny,
        ["full", "random"],
        (0.2, 0.4),
        context=128,
        samples=1,
        tasks=["single_needle"],
        question="aware",
        perplexity=False,
    )
    assert [(r.method, r.keep) for r in table.rows] == [
        *(("full", 1.0), ("random", 0.2), ("random", 0.4))
    ]
    assert table.rows[0].ci95 is None  # one context says nothing of others


def test_progress_counts_to_the_end(tiny):
    seen = []
    table = compare(
        tiny,
        ["random"],
        context=[128, 160],
        samples=1,
        tasks=["single_needle"],
        question="agnostic",
        perplexity=True,
        progress=lambda *state: seen.append(state),
    )
    assert [done for done, _, _ in seen] == list(range(12)) and seen[0][1] == 12
    assert [row.context for row in table.rows] == [128, 160] and table.context == 160
    assert all(row.perplexity > 1 and row.perplexity_n > 8 for row in table.rows)
    assert {prompt.question for prompt in table.prompts} == {"agnostic"}
    assert {answer.context for answer in table.answers} == {128, 160}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["snap"]}, "no method 'snap'"),
        ({"methods": ["snapkv(windows=3)"]}, "no parameter 'windows'"),
        ({"methods": []}, "no method to compare"),
        ({"tasks": ["haystack"]}, "No task named 'haystack'"),
        ({"tasks": []}, "no task to compare"),
        ({"keep": (0.0,)}, "keep=0.0"),
        ({"keep": (-0.1,)}, "keep=-0.1"),
        ({"keep": (1.1,)}, "keep=1.1"),
        ({"keep": ()}, "no keep"),
        ({"samples": 0}, "samples=0"),
        ({"batch": 0}, "batch=0"),
        ({"context": 0}, "context=0"),
        ({"context": ()}, "no context"),
        ({"tasks": ["single_needle"], "data": "some.jsonl"}, "not both"),
        ({"data": "no-such.jsonl"}, "no-such.jsonl: it cannot be read"),
        ({"context": 20}, "does not fit into 20"),
        ({"context": (64, 9000), "samples": 1}, r"of 8192; give 81\d\d at most"),
        ({"seed": -1}, "seed=-1"),
        ({"question": "why"}, "question='why'"),
    ],
)
def test_bad_input_is_one_sentence(tiny, change, message):
    with pytest.raises(ValueError, match=message) as error:
        compare(tiny, **change)
    assert "\n" not in str(error.value)


def test_bad_names_are_one_sentence():
    with pytest.raises(ValueError, match="is no model"):
        compare("no-such-model")
    with pytest.raises(ValueError, match="dtype=int8"):
        compare("demo", dtype="int8")


def test_a_model_without_a_tokenizer_is_refused(tiny):
    with pytest.raises(ValueError, match="no tokenizer"):
        compare((tiny[0], None))


def test_what_was_kept_of_the_shown_prompt(table, rows):
    aware, agnostic = table.prompts
    assert (aware.question, aware.length) == ("aware", agnostic.length + 5)
    assert len(aware.facts) == 1 and len(agnostic.facts) == 2
    assert all(start < stop for start, stop in agnostic.facts)
    kept = {(kept.method, kept.question): kept for kept in table.kept}
    assert kept["full", "agnostic"].held.all()
    assert not kept["full", "aware"].held[..., -1].any()  # it is run again
    snapkv = kept["snapkv", "aware"]
    assert snapkv.held.shape == (6, 4, aware.length)
    assert abs(snapkv.held.sum(axis=-1) - snapkv.slots).max() < 2
    assert snapkv.slots.mean() + 1 == pytest.approx(rows["snapkv", "aware"].slots)
    start, stop = aware.facts[0]
    found = snapkv.held[:, :, start:stop].any(axis=(0, 1))
    assert found.all()  # which is why its answer is right


def test_a_method_and_data_of_ones_own(tiny, tmp_path):
    line = {"context": "the calm fox", "question": "recall", "answer_prefix": "the"}
    line |= {"answer": "axe", "task": "mine", "max_new_tokens": 3}
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(line | {"answer": a}) for a in ("axe", "the")))
    own = Method(score=Noise(), budget=Uniform(), select=TopK())
    table = compare(tiny, {"mine": own}, (1.0,), question="agnostic", data=file)
    (row,) = table.rows
    assert row.n == 2 and list(row.tasks) == ["mine"] and row.perplexity is None
    assert [answer.references for answer in table.answers] == [("axe",), ("the",)]
    assert table.context == row.context == 6 and table.samples == 1


def test_a_mesh_gives_the_table_of_one_device(tmp_path, capsys):
    """Of rows whose budgets heads do not share; batches of three on four places."""
    if jax.device_count() != 8:
        pytest.skip("needs eight devices")
    config = DecoderConfig(width=16, feed_forward=16, layers=2, kv_heads=2, head_dim=8)
    folder.save(Decoder(config, rngs=nnx.Rngs(0)), word_tokenizer(), tmp_path / "model")
    ours, theirs = (
        compare(
            tmp_path / "model",
            ["full", "snapkv(window=8)"],
            (0.3,),
            context=128,
            tasks="single_needle",
            samples=3,
            batch=3,
            perplexity=True,
            mesh=mesh,
        )
        for mesh in ("data=2,fsdp=2,tensor=2", None)
    )
    assert [a.answer for a in ours.answers] == [a.answer for a in theirs.answers]
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        assert (mine.score, mine.slots, mine.n) == (other.score, other.slots, other.n)
        assert mine.cache_bytes == pytest.approx(other.cache_bytes, rel=0.01)
        if mine.question == "agnostic":
            assert mine.perplexity == pytest.approx(other.perplexity, rel=1e-4)
        if mine.method == "full":
            assert mine.cache_bytes == mine.full_cache_bytes
    assert ours.device == "8 x cpu (data 2, fsdp 2, tensor 2)"
    assert (ours.groups, ours.batch, theirs.groups) == (2, 3, 1)
    print_table(ours)
    assert "2 groups: budgets of heads sum in each group" in capsys.readouterr().out
    with pytest.raises(ValueError, match="stays where it lies"):
        compare((Decoder(config, rngs=nnx.Rngs(0)), word_tokenizer()), mesh="auto")
