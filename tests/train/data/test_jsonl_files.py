"""Lines become documents; a faulty one is told by file and line."""

import io
import json

import pytest
from rich.console import Console

from jaxkv.train.data import JsonlFiles
from tests.train.data.reading import documents, epoch, opening

TEXT = {"text": "the calm fox sends axe ."}
PAIR = {"prompt": "recall the calm fox", "answer": " axe bee ."}


def _file(tmp_path, *lines, **options):
    path = tmp_path / "mine.jsonl"
    written = (line if type(line) is str else json.dumps(line) for line in lines)
    path.write_text("\n".join(written))
    return JsonlFiles((str(path),), **options)


def test_a_text_weighs_1_and_a_prompt_0(tmp_path):
    rows = epoch(_file(tmp_path, TEXT, "", PAIR))
    assert documents(rows) == [
        ("<bos> recall the calm fox axe bee .", "axe bee ."),
        ("<bos> the calm fox sends axe .", "the calm fox sends axe ."),
    ]
    assert len(rows) == 1


def test_fields_have_the_names_that_are_given(tmp_path):
    line = {"q": "recall the calm fox", "a": "axe", "text": 3}
    source = _file(tmp_path, line, text="t", prompt="q", answer="a", end=" bell")
    assert documents(epoch(source)) == [
        ("<bos> recall the calm fox axe bell", "axe bell")
    ]


def test_a_longer_pair_is_left_out_and_counted_and_a_text_is_cut(tmp_path):
    console = Console(file=io.StringIO())
    longer = PAIR | {"answer": "axe " * 9}
    source = _file(tmp_path, PAIR, longer, {"text": "bee " * 9})
    rows = source.rows(opening(8, console=console))
    found = documents(rows[i] for i in range(3))
    assert [weighs for _, weighs in found] == [
        "bee bee bee bee bee bee bee",
        "axe bee .",
        "bee",
    ]
    assert "documents 3, left out as longer than a row 1" in console.file.getvalue()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"mine.jsonl, line 3: it is not JSON \(.*\); correct or remove the line"),
        ("[1]", "line 3: it is not an object"),
        ({"words": "x"}, "line 3: it has no field 'text', nor 'prompt' and 'answer'"),
        ({"prompt": "x"}, "line 3: it has no field 'text'"),
        ({"text": 3}, "line 3: 'text' is not a string that says something"),
        ({"text": " "}, "line 3: 'text' is not a string that says something"),
        (PAIR | {"answer": None}, "line 3: 'answer' is not a string"),
        ({"text": "the \ud800 fox"}, "line 3: 'text' holds half of a surrogate pair"),
        ({"messages": []}, "line 3: the tokenizer has no template for messages"),
    ],
)
def test_a_faulty_line_is_told(tmp_path, kept, line, message):
    with pytest.raises(ValueError, match=message):
        epoch(_file(tmp_path, TEXT, "", line))
    assert list(kept.iterdir()) == []


def test_a_line_that_is_not_utf8_is_told(tmp_path):
    source = _file(tmp_path, TEXT)
    with (tmp_path / "mine.jsonl").open("ab") as file:
        file.write(b'\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: it is not JSON"):
        epoch(source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "there is no document in it; give data"),
        ((PAIR,), "each of 1 documents is longer than a row of 4 tokens; give longer"),
    ],
)
def test_a_source_without_rows_is_told(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        epoch(_file(tmp_path, *lines), length=4)
