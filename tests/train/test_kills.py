"""Three kills of a short run; `python -m tests.train.kills` tries more of a longer."""

from tests.train.kills import try_kills


def test_killed_run_ends_as_if_it_had_not_been(tmp_path):
    assert try_kills(tmp_path, kills=3, steps=30, seed=1).holds
