"""Kinds: arrays of the right names and shapes, and no others."""

import numpy as np
import pytest

from jaxkv.calibrate.kinds import KINDS, kind_of
from tests.tiny import CONFIG

L, K, H = CONFIG.layers, CONFIG.kv_heads, CONFIG.head_dim
GOOD = {
    "query_filters": {"filter": np.ones((L, K, H), np.float32)},
    "head_classes": {n: np.ones((L, K), np.float32) for n in ("echo", "induction")},
    "gates": {"gate": np.ones((L, K), np.float32)},
}


def test_what_is_right_fits():
    assert set(GOOD) == set(KINDS)
    for name, arrays in GOOD.items():
        assert kind_of(name).misfit(arrays, CONFIG) == ""


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({}, "it has nothing and needs gate"),
        ({"gates": GOOD["gates"]["gate"]}, "it has gates and needs gate"),
        ({"gate": np.ones((L, K, H), np.float32)}, "must be float32"),
        ({"gate": np.ones((L, K), np.float64)}, "'gate' is float64 "),
        ({"gate": np.full((L, K), np.nan, np.float32)}, "are not finite"),
    ],
)
def test_what_is_wrong_is_named(arrays, why):
    assert why in kind_of("gates").misfit(arrays, CONFIG)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no calibration 'gate' .kinds: query_filters"):
        kind_of("gate")
