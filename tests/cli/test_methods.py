"""`jaxkv methods`: every row with what it says and its parts."""

from jaxkv.cli.main import main
from jaxkv.cli.methods import describe
from jaxkv.method import names


def test_every_row_is_listed(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in names())


def test_a_row_says_what_it_is_and_its_parts():
    what, parts = describe("snapkv")
    assert what.startswith("what the last 32 queries look at")
    assert parts.splitlines()[0] == "WindowAttention(window=32, pool=7, pooling='max')"
