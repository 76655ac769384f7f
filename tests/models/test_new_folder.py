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
    """A file that comes while the folder is removed keeps it there, once."""
    removed, late = new_folder_module.shutil.rmtree, ["late"]

    def remove(folder, ignore_errors):
        removed(folder / "deep", ignore_errors=True)
        if late:
            (folder / late.pop()).write_text("x")
        else:
            removed(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(new_folder_module.shutil, "rmtree", remove)
    with pytest.raises(OSError, match="cannot be written there"):
        with new_folder(tmp_path / "out") as beside:
            (beside / "deep").mkdir()
            raise OSError("disk full")
    assert not late and not list(tmp_path.iterdir())
