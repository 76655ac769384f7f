"""Tokens are kept in a folder of the test's own."""

import pytest


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setenv("JAXKV_TOKENS", str(folder))
    return folder
