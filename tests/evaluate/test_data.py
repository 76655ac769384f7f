"""A data file of the user's own: its schema, its grades, and what is wrong in it."""

import json

import pytest

from jaxkv.evaluate.data import contains_all, contains_any, make_trials, read_lines
from jaxkv.train.tokenizer import word_tokenizer

TOKENIZER = word_tokenizer()
LINE = {
    "context": "the calm fox sends axe map jar bell .",
    "question": "recall the calm fox",
    "answer_prefix": "sends",
    "answer": ["axe map", "jar"],
    "task": "mine",
}


def _read(tmp_path, *lines, longest=100):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(x if type(x) is str else json.dumps(x) for x in lines))
    return make_trials(read_lines(file), TOKENIZER, longest)


def test_a_line_becomes_a_trial(tmp_path):
    (trial,) = _read(tmp_path, LINE)
    said = TOKENIZER.decode(list(trial.prompt_ids))
    assert said == f"{LINE['context']} {LINE['question']} sends"
    assert trial.references == ("axe map", "jar") and trial.task == "mine"
    assert trial.steps == 50 and trial.depth is None
    assert trial.grade("AXE  map", trial.references) == 0.5


def test_lines_of_one_context_are_one_sample(tmp_path):
    other = LINE | {"context": "the dark owl", "answer": "axe", "max_new_tokens": 4}
    found = _read(tmp_path, LINE, other, "", LINE | {"task": "qa_1"})
    assert [t.sample for t in found] == [0, 1, 0]
    assert len({t.key for t in found}) == 3
    assert found[1].references == ("axe",) and found[1].steps == 4
    assert found[2].grade("jar", found[2].references) == 1


def test_containment_is_that_of_ruler():
    assert contains_all("It is\n Paris, or Rome", ("paris", "rome", "oslo")) == 2 / 3
    assert contains_any("in ROME", ("paris", "rome")) == 1
    assert contains_any("in Oslo", ("paris", "rome")) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON"),
        ("[1]", "not an object"),
        ({k: v for k, v in LINE.items() if k != "answer_prefix"}, "no 'answer_prefix'"),
        (LINE | {"context": 3}, "context is not a string"),
        (LINE | {"question": " "}, "question is empty"),
        (LINE | {"answer": []}, "answer is empty"),
        (LINE | {"answer": ["axe", 3]}, "answer is not a string or a list"),
        (LINE | {"answer": ["axe", ""]}, "answer is not a string or a list"),
        (LINE | {"max_new_tokens": 0}, "max_new_tokens=0"),
        (LINE | {"max_new_tokens": "9"}, "max_new_tokens='9'"),
        (
            LINE | {"max_new_tokens": 90},
            "15 tokens, and with an answer of 90 they pass",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message) as error:
        _read(tmp_path, LINE, line)
    assert "mine.jsonl, line 2: " in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_empty_or_no_text(tmp_path):
    with pytest.raises(ValueError, match="holds no line"):
        _read(tmp_path, "", "")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary: it cannot be read"):
        read_lines(tmp_path / "binary")
