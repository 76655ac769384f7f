"""A user's folders follow the environment."""

from pathlib import Path

from jaxkv.folders import user_folder


def test_the_environment_says_where(monkeypatch):
    for name in ("JAXKV_MINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert user_folder("JAXKV_MINE", "mine") == Path.home() / ".cache/jaxkv/mine"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_folder("JAXKV_MINE", "mine") == Path("/cache/jaxkv/mine")
    monkeypatch.setenv("JAXKV_MINE", "/here")
    assert user_folder("JAXKV_MINE", "mine") == Path("/here")
