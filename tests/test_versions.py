"""The broken pairs of jax and flax are named with their cure; the good ones pass."""

import subprocess
import sys

import pytest

from jaxkv.versions import check


@pytest.mark.parametrize(
    ("jax", "flax"),
    [
        ("0.10.2", "0.12.8"),
        ("0.11.0", "0.12.8"),
        ("0.11.1", "0.12.9"),
        ("0.11.2", "0.12.10"),
        ("0.12.0.1", "0.12.10"),
        ("0.12.0.1", "0.12.12"),
        ("0.12.1.dev20261101", "0.13.0rc1"),
    ],
)
def test_good_pairs(jax, flax):
    check(jax, flax)


@pytest.mark.parametrize(
    ("jax", "flax", "cure"),
    [
        ("0.11.1", "0.12.8", "flax>=0.12.9"),
        ("0.11.2", "0.12.8", "flax>=0.12.10"),
        ("0.12.0.1", "0.12.8", "flax>=0.12.10"),
        ("0.11.2", "0.12.9", "flax>=0.12.10"),
        ("0.10.1", "0.12.8", "upgrade jax"),
        ("0.10.2", "0.12.7", "upgrade flax"),
    ],
)
def test_broken_pairs_name_their_cure(jax, flax, cure):
    with pytest.raises(ImportError, match=cure) as error:
        check(jax, flax)
    assert jax in str(error.value) or flax in str(error.value)
    assert "\n" not in str(error.value)


def test_installed_pair():
    check()


def test_a_broken_pair_stops_the_import_before_flax():
    code = """if True:
        import importlib.metadata as m, sys
        real = m.version
        m.version = lambda n: {"jax": "0.11.1", "flax": "0.12.8"}.get(n) or real(n)
        try:
            import jaxkv
        except ImportError as error:
            print("flax" in sys.modules, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False flax 0.12.8 does not work with jax 0.11.1")
