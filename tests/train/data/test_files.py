"""Files are found, and a change of any is told by its name."""

import json

import pytest

from jaxkv.train.data import Mixture, Tasks, TextFiles
from jaxkv.train.data.files import (
    PIECE,
    WHOLE,
    check_unchanged,
    digest,
    find,
    fingerprint,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "[x].txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the calm fox sends axe {name}")
    return tmp_path / "data"


def test_paths_and_globs_are_found_once(folder):
    patterns = (f"{folder}/b.txt", f"{folder}/*.txt", f"{folder}/**/*.txt")
    found = [str(path.relative_to(folder)) for path in find(patterns)]
    assert found == ["b.txt", "[x].txt", "a.txt", "deep/c.txt"]
    assert find((f"{folder}/[x].txt",))[0].name == "[x].txt"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", "none.txt: there is no such file; correct the path"),
        ("*.md", "no file matches; correct the pattern"),
        ("deep", "it is a folder; give a pattern"),
        ("**/dee*", "no file matches"),
    ],
)
def test_what_is_missing_is_told(folder, pattern, message):
    with pytest.raises(ValueError, match=message):
        find((f"{folder}/{pattern}",))


def test_an_unchanged_source_passes(folder):
    source = Mixture((Tasks(), TextFiles((f"{folder}/*.txt",))))
    stored = json.loads(json.dumps(fingerprint(source)))
    assert len(stored) == 3
    (folder / "a.txt").touch()
    check_unchanged(source, stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "a.txt").write_text("longer " * 9), r"a.txt: it changed from"),
        (lambda f: (f / "b.txt").write_text("x" * 28), r"b.txt: its content changed"),
        (lambda f: (f / "a.txt").unlink(), r"a.txt: this file is gone"),
        (lambda f: (f / "d.txt").write_text("new"), r"d.txt: this file is new"),
    ],
)
def test_a_change_names_the_file_and_what_to_do(folder, change, message):
    source = TextFiles((f"{folder}/*.txt",))
    stored = fingerprint(source)
    change(folder)
    with pytest.raises(ValueError, match=message + ".*begin a new run"):
        check_unchanged(source, stored)


@pytest.mark.parametrize("place", [0, PIECE - 1, 2 * WHOLE - 1])
def test_a_large_file_is_hashed_in_pieces(tmp_path, place):
    path = tmp_path / "large.bin"
    content = bytearray(2 * WHOLE)
    path.write_bytes(content)
    source = TextFiles((str(path),))
    stored = fingerprint(source)
    content[place] = 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its content changed"):
        check_unchanged(source, stored)


def test_a_path_without_its_comma_is_told():
    with pytest.raises(ValueError, match=r"give a tuple of paths, \('mine.txt',\)"):
        find("mine.txt")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="mine.txt: it cannot be read"):
        digest(tmp_path / "mine.txt")
