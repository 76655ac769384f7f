"""Models whose entries are no keys and values: which rows run on them and why not all.

Of latents, one model has them in every layer and one in every other layer. Of low-rank
attention, one caches keys after RoPE and one before it.
"""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxkv.cache.load import load_cache
from jaxkv.generate import compress, generate
from jaxkv.layerwise import head_groups
from jaxkv.method import method, names
from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LatentSizes, LowRankSizes
from jaxkv.prefill import prefill
from jaxkv.prompts import pad
from tests.greedy import greedy
from tests.laws import same_positions
from tests.tensor_parallel import split_decoder

SIZES = LatentSizes(rank=24, rope_dim=8, nope_dim=16, value_dim=12, query_rank=20)
CONFIG = DecoderConfig(
    vocabulary=64,
    width=32,
    feed_forward=32,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    max_position=512,
    repeat_tokens=(7, 8),
    initial_scale=0.25,
    attention=(SIZES, SIZES),
)
HYBRID = replace(CONFIG, attention=(None, replace(SIZES, query_rank=None)))
CUT = replace(CONFIG, attention=(LowRankSizes((10, 6), (4, 8)),) * 2)
UNROTATED = replace(CONFIG, attention=(LowRankSizes((12, 12), (6, 6), False),) * 2)
LENGTHS = (40, 97, 200)
NEW = 5
KEEP = 0.3

KV_HEADS = "tells kv heads apart"
TURNS = "no numbers are the pairs that RoPE turns"
PAID = "weighs tokens by the attention to rotated keys"
GATES = "There are no gates of this model"  # they are trained on grouped queries
NOT_CUT = {
    "knorm_rerotated": f"Rerotated turns stored keys.*{TURNS}",
    "streaming_llm_rebased": f"SinksFollow turns stored keys.*{TURNS}",
    "expected_attention": f"ExpectedAttention turns queries.*{TURNS}",
    "adakv_expected_attention": f"ExpectedAttention turns queries.*{TURNS}",
    "qfilters": "QueryFilter knows a direction of whole keys",
    "duoattention": GATES,
}
"""Rows that do not run on low-rank keys after RoPE, and why. All else does: absorbed
queries give the heads' own attention, and a basis keeps lengths and angles."""
NOT_UNROTATED = NOT_CUT | {
    "keydiff": "KeyDifference compares the directions of rotated keys",
    "snapkv": f"WindowAttention {PAID}",
    "h2o": f"AccumulatedAttention {PAID}",
    "tova": f"LastQuery {PAID}",
    "kvzip": f"RepeatedAttention {PAID}",
    "oracle": f"FutureAttention {PAID}",
    "razorattention": "MeanSlot joins rotated keys of several positions",
}
"""Rows that do not run on low-rank keys before RoPE: those that look at queries or at
where keys point. What is left goes by position, by chance, or by a key's length."""
FEW = ("full", "random", "streaming_llm", "knorm")
EACH_PART = (*FEW, "keydiff", "snapkv", "adakv", "critical_snapkv_kvpress", "h2o")
EACH_PART = (*EACH_PART, "kvzip", "razorattention")
"""Of the rows that run on low-rank keys after RoPE, some that share few parts."""
NOT = {
    "knorm": "KeyNorm ranks tokens by the length of their keys",
    "knorm_rerotated": "KeyNorm ranks tokens by the length of their keys",
    "qfilters": "QueryFilter knows one direction",
    "duoattention": f"HeadClasses {KV_HEADS}",
    "razorattention": f"HeadClasses {KV_HEADS}",
}
"""Rows that do not run on latents, and why."""
RUN = [name for name in names() if name not in NOT and name != "oracle"]
"""Those that do: attention of absorbed queries is that of every head (snapkv, h2o,
tova, kvzip, expected_attention and what is built on them), entries have directions
(keydiff), and recency, chance and layers' shares need no keys at all."""
SAME = {"adakv": "snapkv", "adakv_kvpress": "snapkv_kvpress"}
"""Rows that deal slots to heads: of one row they are what they are built on."""


@cache
def model(config=CONFIG):
    return random_decoder(config, 0, "float32")


@cache
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocabulary, n).tolist() for n in LENGTHS]


def made(config, rows, asked):
    padded = pad(asked, CONFIG.vocabulary, CONFIG.max_position)
    return prefill(model(config), padded, rows, headroom=32, rerun=1)


@pytest.fixture(scope="module")
def batch():
    rows = tuple(method(name, keep=KEEP) for name in RUN)
    return dict(zip(RUN, made(CONFIG, rows, prompts()), strict=True))


@pytest.fixture(scope="module")
def uncut():
    rows = tuple(method(name, keep=1.0) for name in RUN)
    return dict(zip(RUN, made(CONFIG, rows, prompts()), strict=True))


@cache
def expected(config=CONFIG):
    """Greedy tokens of the model's own forward pass, naive and nothing cached."""
    return greedy(model(config), prompts(), NEW)


def answers(cache, asked=None, config=CONFIG):
    last = [prompt[-1:] for prompt in (prompts() if asked is None else asked)]
    return generate(model(config), last, cache=cache, max_new_tokens=NEW)


@pytest.mark.parametrize("name", NOT)
@pytest.mark.parametrize("config", [CONFIG, HYBRID], ids=["latent", "hybrid"])
def test_rows_that_do_not_say_why(name, config):
    with pytest.raises(ValueError, match=NOT[name]) as error:
        compress(model(config), prompts(), method(name, keep=KEEP))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "name", "why"),
    [(CUT, *row) for row in NOT_CUT.items()]
    + [(UNROTATED, *row) for row in NOT_UNROTATED.items()],
)
def test_rows_that_do_not_run_on_low_ranks_say_why(config, name, why):
    with pytest.raises(ValueError, match=why) as error:
        compress(model(config), prompts(), method(name, keep=KEEP))
    assert "\n" not in str(error.value)


def test_rows_without_keys_are_those_that_run_on_unrotated_ones():
    looks = {type(method(name).score) for name in NOT_UNROTATED}
    others = set(names()) - set(NOT_UNROTATED) - set(FEW)
    assert {type(method(name).score) for name in others} <= looks


@pytest.mark.parametrize("config", [CUT, UNROTATED], ids=["cut", "unrotated"])
def test_rows_run_on_low_ranks(config):
    """At a full budget as the model's own pass; below it within their budget, and as
    in a single run."""
    run = EACH_PART if config is CUT else FEW
    whole = made(config, tuple(method(n, keep=1.0) for n in run), prompts())
    cut = made(config, tuple(method(n, keep=KEEP) for n in run), prompts())
    alone = made(config, tuple(method(n, keep=KEEP) for n in run), prompts()[2:])
    for name, full, row, single in zip(run, whole, cut, alone, strict=True):
        n = 1 if method(name).when == "step" else NEW
        found = [tokens[:n] for tokens in answers(full, config=config)]
        assert found == [tokens[:n] for tokens in expected(config)]
        if name not in ("full", "razorattention"):  # those hold what they like
            slots = [method(name, keep=KEEP).slots(m) - 1 for m in LENGTHS]
            held = row.lengths.sum(axis=(0, 2))
            assert (held <= np.array(slots) * CONFIG.layers * CONFIG.kv_heads).all()
            assert (held > 0).all()
        for ours, theirs in zip(row.positions, single.positions, strict=True):
            assert same_positions(ours[2:], theirs)
    assert len({tuple(row) for row in expected(config)}) == len(LENGTHS)


def test_every_row_is_listed():
    assert set(NOT) <= set(names()) and len(RUN) >= 17


@pytest.mark.parametrize("name", RUN)
def test_absorbed_decode_of_a_full_cache_is_naive_attention(name, uncut):
    # A row that evicts at every step holds no more than the prompt's tokens.
    n = 1 if method(name).when == "step" else NEW
    found = answers(uncut[name])
    assert [row[:n] for row in found] == [row[:n] for row in expected()]
    assert len({tuple(row) for row in expected()}) == len(LENGTHS)  # not degenerate


@pytest.mark.parametrize("name", RUN)
def test_rows_hold_their_budget(name, batch):
    if name == "full":
        return
    row, held = method(name, keep=KEEP), batch[name].lengths  # [L, B, 1]
    assert held.shape == (CONFIG.layers, len(LENGTHS), 1)
    slots = np.array([row.slots(n) - 1 for n in LENGTHS]) * CONFIG.layers
    np.testing.assert_array_equal(held.sum(axis=(0, 2)), slots)


@pytest.mark.parametrize("name", SAME)
def test_heads_share_nothing_on_one_row(name, batch):
    ours, theirs = batch[name], batch[SAME[name]]
    for layer in range(CONFIG.layers):
        assert same_positions(ours.positions[layer], theirs.positions[layer])


def test_row_of_a_padded_batch_equals_its_single_run(batch):
    rows = ("snapkv", "kvzip")
    for i, prompt in list(enumerate(prompts()))[::2]:
        singles = made(CONFIG, tuple(method(n, keep=KEEP) for n in rows), [prompt])
        for name, single in zip(rows, singles, strict=True):
            for layer in range(CONFIG.layers):
                ours = batch[name].positions[layer][i : i + 1]
                assert same_positions(ours, single.positions[layer])
            assert answers(single, [prompt]) == [answers(batch[name])[i]]


@pytest.mark.parametrize(
    "config",
    [CONFIG, HYBRID, CUT, UNROTATED],
    ids=["latent", "hybrid", "cut", "unrotated"],
)
def test_a_prompt_in_blocks_equals_the_whole(config):
    row = method("full")
    cache = compress(model(config), [p[:30] for p in prompts()], row, headroom=8)
    for start, end in ((30, 39), (39, 199)):
        blocks = [p[start:end][: max(len(p) - 1 - start, 0)] for p in prompts()]
        if not all(blocks):  # the shorter prompts have ended
            break
        cache = compress(model(config), blocks, row, cache=cache, headroom=200)
    asked = [p[int(n) :] for p, n in zip(prompts(), cache.next_position, strict=True)]
    found = generate(model(config), asked, cache=cache, max_new_tokens=NEW)
    assert found == expected(config)


def test_hybrid_layers_cache_what_they_attend_to():
    rows = method("full"), method("adakv", keep=KEEP)
    whole, cut = made(HYBRID, rows, prompts())
    assert answers(whole, config=HYBRID) == expected(HYBRID)
    slots = [rows[1].slots(n) - 1 for n in LENGTHS]
    assert cut.lengths.sum(axis=-1).tolist() == [[2 * n for n in slots], slots]
    grouped, latent = whole.pools
    assert grouped.entry.k.shape[-1] == 16 and latent.entry.k.shape[-1] == SIZES.entry
    assert grouped.length.shape[-1] == 2 and latent.length.shape[-1] == 1
    assert (whole.lengths[1, :, 1] == 0).all() and (whole.lengths[0] > 0).all()
    with pytest.raises(ValueError, match="keeps all layers in one pool"):
        compress(model(HYBRID), prompts(), method("kvzip"))
    with pytest.raises(ValueError, match="one row of latents"):
        compress(model(), prompts(), method("full"), groups=2)


def test_eight_devices_answer_as_one():
    """Sequences over data; the one row of latents, of all heads, on every device."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    by_head = PartitionSpec(None, "tensor")
    rules = dict(qkv=by_head, query=by_head, up=by_head)
    rules |= dict(out=PartitionSpec("tensor"), heads_out=PartitionSpec("tensor"))
    split = split_decoder(model(HYBRID), mesh, jax.device_put, rules)
    up = split.layers[1].attention.up[...]
    assert up.addressable_shards[0].data.shape[1] == CONFIG.query_heads // 2
    four = [*prompts(), prompts()[0][1:]]
    row = method("snapkv", keep=KEEP)
    found = generate(split, four, method=row, max_new_tokens=NEW)
    assert found == generate(model(HYBRID), four, method=row, max_new_tokens=NEW)


@pytest.mark.parametrize("config", [CUT, UNROTATED], ids=["cut", "unrotated"])
def test_eight_devices_with_low_ranks_answer_as_one(config):
    """Sequences over data, kv heads and their rows over tensor."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    split = split_decoder(model(config), mesh, jax.device_put)
    assert head_groups(split) == 2
    four = [*prompts(), prompts()[0][1:]]
    row = method("streaming_llm", keep=KEEP)
    found = generate(split, four, method=row, max_new_tokens=NEW)
    assert found == generate(model(config), four, method=row, max_new_tokens=NEW)


@pytest.mark.parametrize(
    "config", [CONFIG, HYBRID, CUT], ids=["latent", "hybrid", "cut"]
)
def test_a_saved_cache_answers_alike(config, tmp_path):
    (made_,) = made(config, (method("snapkv", keep=KEEP),), prompts())
    made_.save(tmp_path / "cache", model(config))
    again = load_cache(tmp_path / "cache", model(config), headroom=32)
    assert answers(again, config=config) == answers(made_, config=config)
