"""What is kept is made once, whole, and anew for whatever differs."""

import os

import pytest

from jaxkv.train.data import TextFiles
from jaxkv.train.data.store import TOKENS, entry
from tests.train.data.reading import documents, epoch


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("the calm fox sends axe .")
    return path


def test_an_entry_is_made_once_and_anew_after_a_change(path, kept):
    made = []

    def make(folder):
        assert not any(folder.iterdir())
        made.append(folder)
        return {}

    def name(**how):
        return entry([path], how, make).name

    first = name(a=1)
    assert name(a=1) == first and len(made) == 1
    assert name(a=2) != first
    path.write_text("the calm fox sends fog .")
    assert name(a=1) != first and len(made) == 3
    os.utime(path, ns=(0, 0))
    assert name(a=1) != first and len(made) == 4
    assert len(list(kept.iterdir())) == 4  # nothing is left beside


def test_what_fails_leaves_nothing(path, kept):
    def make(folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"No space left.*free space, or give another"):
        entry([path], {}, make)
    assert list(kept.iterdir()) == []


def test_another_process_may_be_faster(path):
    def slower(folder):
        entry([path], {}, lambda _: {"mine": False})
        return {"mine": True}

    folder = entry([path], {}, slower)
    assert '"mine": false' in (folder / "about.json").read_text()


def test_tokens_are_read_from_what_is_kept(path, kept, monkeypatch):
    source = TextFiles((str(path),))
    first = documents(epoch(source))
    monkeypatch.setattr("jaxkv.train.data.encode._encode", None)
    assert documents(epoch(source)) == first


def test_an_entry_cut_short_is_refused(path, kept):
    source = TextFiles((str(path),))
    epoch(source)
    (folder,) = kept.iterdir()
    os.truncate(folder / TOKENS, 4)
    with pytest.raises(ValueError, match="not whole; remove it"):
        epoch(source)
