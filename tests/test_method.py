"""Methods by name: rows, their parameters, and one sentence for what is neither."""

import dataclasses

import pytest

from jaxkv.cache.rerotated import Rerotated
from jaxkv.merge.mean_slot import MeanSlot
from jaxkv.method import method, names, parameters
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.chunks import Chunks
from jaxkv.select.critical import Critical

ISSUED = """adakv adakv_expected_attention adakv_kvpress critical_snapkv_kvpress
chunkkv duoattention expected_attention full h2o keydiff knorm knorm_rerotated kvzip
kvzip_layerwise oracle pyramidkv pyramidkv_kvpress qfilters random razorattention snapkv
snapkv_kvpress streaming_llm streaming_llm_rebased tova tova_kvpress"""


def test_the_rows_that_ship():
    assert set(ISSUED.split()) <= set(names())
    assert names() == sorted(names())


def test_parameters_in_the_name():
    row = method("snapkv(window=64, pool=5)", keep=0.25)
    assert row.score == WindowAttention(window=64, pool=5)
    assert row.keep == 0.25
    assert method("snapkv", window=64, pool=5, keep=0.25) == row
    assert method(" snapkv ( window = 64,pool=5 ) ", keep=0.25) == row
    assert method("snapkv(pooling=average)").score.pooling == "average"
    assert method("adakv(floor=0.5)").budget.floor == 0.5
    assert method("snapkv()") == method("snapkv")


def test_parts_that_combine_with_any_row():
    row = method("snapkv(select=critical, cache=rerotated, merge=mean_slot)")
    assert row.select == Critical() and row.cache == Rerotated()
    assert row.merge == MeanSlot() and row.score == method("snapkv").score
    assert method("critical_snapkv_kvpress(select=top_k)") == method("snapkv_kvpress")
    assert method("knorm(cache=rerotated)") == method("knorm_rerotated")
    assert method("snapkv(select=chunks, size=5)").select == Chunks(size=5)
    with pytest.raises(ValueError, match="no part select='luck' \\(parts: top_k"):
        method("snapkv(select=luck)")


def test_a_keyword_wins_over_the_name():
    assert method("snapkv(window=64)", window=16).score.window == 16


def test_a_whole_number_serves_where_a_fraction_is_asked():
    assert method("adakv(floor=1)").budget.floor == 1.0
    assert method("adakv", floor=0).budget.floor == 0.0


@pytest.mark.parametrize("name", names())
def test_parameters_set_back_give_the_row(name):
    row = method(name)
    assert method(name, **parameters(row)) == row
    assert hash(row) == hash(dataclasses.replace(row))  # a static argument of jit


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("snapkw", {}, "no method 'snapkw'; did you mean 'snapkv'"),
        ("zzz", {}, r"no method 'zzz' \(methods: "),
        ("", {}, "is not a method"),
        ("snapkv(window", {}, "is not a method"),
        ("snapkv(window)", {}, "'window' is not parameter=value"),
        ("snapkv(=3)", {}, "is not parameter=value"),
        ("snapkv(width=3)", {}, "no parameter 'width' .it has: .*window"),
        ("snapkv(window=a)", {}, "window='a' is not of type int"),
        ("snapkv(window=1.5)", {}, "window=1.5 is not of type int"),
        ("snapkv", {"window": True}, "window=True is not of type int"),
        ("snapkv(pooling=3)", {}, "pooling=3 is not of type str"),
        ("snapkv(pool=4)", {}, "pool=4 is not an odd number"),
        ("snapkv(window=0)", {}, "window=0"),
        ("snapkv(pooling=median)", {}, "neither max nor average"),
        ("adakv(floor=2)", {}, "floor=2"),
        ("adakv_kvpress(floor=-0.1)", {}, "floor=-0.1"),
        ("streaming_llm(sinks=-1)", {}, "sinks=-1"),
        ("expected_attention(sinks=-1)", {}, "sinks=-1"),
        ("expected_attention(future=0)", {}, "future=0"),
        ("expected_attention(epsilon=-1)", {}, "epsilon=-1.0 is below 0"),
        ("critical_snapkv_kvpress(first=2)", {}, "first=2.0 is not a fraction"),
        ("critical_snapkv_kvpress(epsilon=-1)", {}, "epsilon=-1.0 is below 0"),
        ("snapkv", {"keep": 0.0}, "keep=0.0 is not a fraction"),
        ("snapkv", {"keep": -0.5}, "keep=-0.5 is not a fraction"),
        ("snapkv", {"keep": 1.5}, "keep=1.5 is not a fraction"),
        ("snapkv", {"keep": float("nan")}, "keep=nan is not a fraction"),
    ],
)
def test_bad_methods_are_one_sentence(name, changes, said):
    with pytest.raises(ValueError, match=said) as error:
        method(name, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "keep", "length", "slots"),
    [
        ("knorm", 0.12, 2048, 245),
        ("knorm", 0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        ("knorm", 0.001, 10, 1),
        ("knorm", 1.0, 77, 77),
        ("snapkv", 0.1, 100, 32),  # the window at least
        ("snapkv", 0.5, 20, 20),  # a prompt shorter than the window is kept whole
        ("snapkv", 0.5, 200, 100),
        ("full", 0.1, 50, 50),
        ("streaming_llm", 0.01, 100, 5),  # the sinks, and the newest token
        ("streaming_llm", 0.5, 3, 3),
        ("expected_attention", 0.01, 100, 5),
        ("critical_snapkv_kvpress", 0.1, 100, 64),
    ],
)
def test_slots_a_head(name, keep, length, slots):
    assert method(name, keep=keep).slots(length) == slots
