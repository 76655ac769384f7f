"""Every row of configs/methods obeys the laws on one layer; a new row is collected."""

import pytest

from jaxkv.method import method, names
from tests.laws import LAWS, compressed, held, same_positions
from tests.tiny import KEEP


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", names())
def test_layer(law, name):
    law(method(name, keep=KEEP))


def test_adakv_with_a_floor_of_one_is_snapkv():
    uniform, adaptive = method("snapkv", keep=KEEP), method("adakv", keep=KEEP, floor=1)
    assert same_positions(held(compressed(uniform)), held(compressed(adaptive)))


def test_adakv_gives_heads_what_they_need():
    lengths = compressed(method("adakv", keep=0.5)).length[0].ravel()
    assert int(lengths.max()) > int(lengths.min())
