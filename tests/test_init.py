"""`import jaxkv`: the names are there, functions stay functions, nothing is changed."""

import subprocess
import sys

import pytest

import jaxkv

NAMES = ["load", "method", "compress", "generate", "stream", "compare", "attend"]
NAMES += ["load_cache"]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_functions_and_records_are_there():
    assert all(callable(getattr(jaxkv, name)) for name in NAMES)
    assert jaxkv.Method and jaxkv.Sample and jaxkv.Cache and jaxkv.__version__
    assert set(NAMES) <= set(dir(jaxkv)) and set(NAMES) <= set(jaxkv.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="compres"):
        _ = jaxkv.compres


def test_modules_of_the_same_name_do_not_hide_the_functions():
    code = """if True:
        import jaxkv, jaxkv.compress, jaxkv.generate, jaxkv.method, jaxkv.attend
        import jaxkv.attend.all_pages, jaxkv.evaluate.compare
        from jaxkv.method import Method
        names = ("compress", "generate", "method", "attend", "compare")
        print([type(getattr(jaxkv, name)).__name__ for name in names])
    """
    assert run(code) == str(["function"] * 5)


def test_a_star_import_gives_the_functions():
    code = "from jaxkv import *; import types; print(type(compress).__name__)"
    assert run(code) == "function"


def test_importing_does_not_import_jax():
    assert run("import jaxkv, sys; print('jax' in sys.modules)") == "False"
