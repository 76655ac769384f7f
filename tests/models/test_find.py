"""Where a model lies: every kind of name, and one clear sentence for the others."""

import sys
from types import SimpleNamespace

import pytest

from jaxkv.models import find
from jaxkv.models.find import demo_folder, folder_of, is_folder, shipped


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_a_folder(folder):
    assert folder_of(folder) == folder_of(str(folder)) == folder
    assert is_folder(folder) and not is_folder(folder / "config.json")


def test_demo(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(find.jaxkv, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match="demo model is not in this installation"):
        folder_of("demo")
    folder.rename(tmp_path / "demo")
    assert folder_of("demo") == demo_folder() == tmp_path / "demo"


def test_what_is_shipped_has_names():
    assert shipped()["demo"] == demo_folder()
    for name, path in shipped().items():
        assert is_folder(name) and folder_of(name) == path
        assert name == "demo" or path == demo_folder() / name.removeprefix("demo-")


def test_hub(folder, monkeypatch):
    def snapshot_download(name, allow_patterns):
        assert name == "org/name"
        assert not any(pattern.endswith((".bin", "*")) for pattern in allow_patterns)
        return str(folder)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert folder_of("org/name") == folder


def test_hub_that_cannot_be_reached(monkeypatch):
    def snapshot_download(*_, **__):
        raise RuntimeError("no network\nand more")

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ValueError, match="give 'demo'.* said: no network$"):
        folder_of("org/name")


@pytest.mark.parametrize("name", ["llama-9", "org/name", "a/b/c", "", "../x/y"])
def test_no_such_model(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="is no model; give 'demo'.* a folder with"):
        folder_of(name)
