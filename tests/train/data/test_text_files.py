"""Texts become documents by file or separator; long ones are read in parts."""

import pytest

from jaxkv.train.data import TextFiles, text_files
from tests.train.data.reading import documents, epoch

TEXTS = ("the calm fox sends axe .", "the dark fog helps bee cow .")


def _file(tmp_path, content, name="mine.txt", **options):
    path = tmp_path / name
    path.write_bytes(content if type(content) is bytes else content.encode())
    return TextFiles((str(path),), **options)


def _texts(source, **changed):
    return [text for text, _ in documents(epoch(source, **changed))]


def test_a_file_is_a_document(tmp_path):
    for i, text in enumerate(TEXTS):
        source = _file(tmp_path, text, f"{i}.txt")
    source = TextFiles((str(tmp_path / "*.txt"),))
    assert _texts(source) == [f"<bos> {text}" for text in TEXTS]


def test_a_document_stands_between_separators(tmp_path):
    content = "\n\n".join(("", *TEXTS, " ", ""))
    source = _file(tmp_path, b"\xef\xbb\xbf" + content.encode(), separator="\n\n")
    assert _texts(source) == [f"<bos> {text}" for text in TEXTS]


def test_the_end_is_put_after_each(tmp_path):
    source = _file(tmp_path, "|".join(TEXTS), separator="|", end=" bell")
    assert documents(epoch(source)) == [
        (f"<bos> {text} bell", f"{text} bell") for text in TEXTS
    ]


def test_a_longer_document_is_cut_into_segments(tmp_path):
    words = " ".join(["fox", "fog", "bee", "cow"] * 5)
    rows = epoch(_file(tmp_path, words), length=8)
    assert [text for text, _ in documents(rows)] == [
        "<bos> fox fog bee cow fox fog bee",
        "cow fox fog bee cow",
        "cow fox fog bee cow fox fog bee",
    ]
    assert all(row["position"][0] == 0 and row["weight"][0] == 0 for row in rows)


@pytest.mark.parametrize("chunk", [7, 16, 40, 1000])
@pytest.mark.parametrize("separator", ["\n\n\n", "|"])
def test_parts_change_nothing_that_white_space_separates(
    tmp_path, monkeypatch, chunk, separator
):
    monkeypatch.setattr(text_files, "CHUNK", chunk)
    texts = [" ".join(TEXTS * i) for i in range(1, 6)]
    source = _file(tmp_path, separator.join(texts), separator=separator)
    assert _texts(source, length=128) == sorted(f"<bos> {text}" for text in texts)


def test_blanks_without_end_are_no_document(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK", 8)
    source = _file(tmp_path, " " * 100 + TEXTS[0] + "\n" * 100)
    assert _texts(source) == [f"<bos> {TEXTS[0]}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the calm \xff fox", r"mine.txt: it is not UTF-8 text \(.*\); convert it"),
        ("", "mine.txt: there is no document in it; give data"),
        (" \n\t\n", "there is no document in it"),
    ],
)
def test_faults_are_told(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        epoch(_file(tmp_path, content))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="none.txt: there is no such file"):
        epoch(TextFiles((str(tmp_path / "none.txt"),)))
