"""A new folder is there whole, or nothing of it is."""

import pytest

from jaxkv.models import new_folder as new_folder_module
from jaxkv.models.new_folder import new_folder


def test_it_is_there_once_all_is_written(tmp_path):
    with new_folder(tmp_path / "out") as beside:
        (beside / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["file"]


def test_a_failure_leaves_nothing_though_a_thread_still_writes(tmp_path, monkeypatch):
    """One that comes as the folder is removed, and one that makes it again."""
    pause, late = new_folder_module.time.sleep, ["again", "late"]

    def sleep(seconds):
        if late:
            (folder := next(iter(folders))).mkdir(exist_ok=True)
            (folder / late.pop()).write_text("x")
        pause(seconds)

    folders = []
    monkeypatch.setattr(new_folder_module.time, "sleep", sleep)
    with pytest.raises(OSError, match="cannot be written there"):
        with new_folder(tmp_path / "out") as beside:
            folders.append(beside)
            raise OSError("disk full")
    assert not late and not list(tmp_path.iterdir())
