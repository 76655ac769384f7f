"""Models with convolutional attention, through caches: which rows run, and the trail.

One model has it in every layer; two more mix it with grouped queries and with latents.
"""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxkv.cache.load import load_cache
from jaxkv.calibrate.store import remember
from jaxkv.evaluate.measure import full_bytes
from jaxkv.evaluate.trials import Batch
from jaxkv.fed import fed_scores
from jaxkv.feeds import Future, Repeat, chunks
from jaxkv.generate import compress, generate
from jaxkv.kept import TRAIL
from jaxkv.method import method, names
from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import ConvolutionalSizes, LatentSizes
from jaxkv.parts import Score
from jaxkv.phases import feed
from jaxkv.prefill import looks, prefill, see_layer
from jaxkv.prompts import Prompts, pad
from tests.greedy import greedy
from tests.laws import same_positions
from tests.seen import random_calibration
from tests.tensor_parallel import split_decoder

SIZES = ConvolutionalSizes(query_heads=6, kv_heads=2, head_dim=16, rope_dim=8)
CONFIG = DecoderConfig(
    vocabulary=64,
    width=32,
    feed_forward=32,
    layers=2,
    query_heads=8,
    kv_heads=4,
    head_dim=16,
    max_position=512,
    repeat_tokens=(7, 8),
    initial_scale=0.25,
    attention=(SIZES, SIZES),
)
LATENT = LatentSizes(rank=24, rope_dim=8, nope_dim=16, value_dim=12)
MIXED = {
    "grouped": replace(CONFIG, attention=(None, SIZES)),
    "latent": replace(CONFIG, attention=(replace(SIZES, channel_kernel=3), LATENT)),
}
LENGTHS = (1, 2, 40, 97, 200)
NEW = 5
KEEP = 0.3

LENGTH = "KeyNorm ranks tokens by the length of their keys, and a layer scales"
NOT = {"knorm": LENGTH, "knorm_rerotated": LENGTH}
"""Rows that do not run, and why."""
RUN = [name for name in names() if name not in NOT and name != "oracle"]
"""All others do: entries are keys and values of kv heads, as of grouped queries."""

CUT = ("adakv", "kvzip", "tova", "duoattention")  # pools of each kind, when cut


@cache
def model(config=CONFIG):
    made = random_decoder(config, 0, "float32")
    if config.alike:
        layers = [random_calibration(2, 16, seed) for seed in range(2)]
        for kind, arrays in jax.tree.map(lambda *x: np.stack(x), *layers).items():
            remember(made, kind, arrays)
    return made


@cache
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocabulary, n).tolist() for n in LENGTHS]


def made(config, rows, asked):
    padded = pad(asked, CONFIG.vocabulary, CONFIG.max_position)
    return prefill(model(config), padded, rows, headroom=32, rerun=1)


@pytest.fixture(scope="module")
def batch():
    rows = tuple(method(name, keep=KEEP) for name in CUT)
    return dict(zip(CUT, made(CONFIG, rows, prompts()), strict=True))


@pytest.fixture(scope="module")
def uncut():
    rows = tuple(method(name, keep=1.0) for name in RUN)
    return dict(zip(RUN, made(CONFIG, rows, prompts()), strict=True))


@cache
def expected(config=CONFIG):
    return greedy(model(config), prompts(), NEW)


def answers(cache, asked=None, config=CONFIG):
    last = [prompt[-1:] for prompt in (prompts() if asked is None else asked)]
    return generate(model(config), last, cache=cache, max_new_tokens=NEW)


@pytest.mark.parametrize("name", NOT)
@pytest.mark.parametrize("config", [CONFIG, MIXED["grouped"]], ids=["every", "mixed"])
def test_rows_that_do_not_say_why(name, config):
    with pytest.raises(ValueError, match=NOT[name]) as error:
        compress(model(config), prompts(), method(name, keep=KEEP))
    assert "\n" not in str(error.value)


def test_every_row_is_listed():
    assert set(NOT) <= set(names()) and len(RUN) >= 20


@pytest.mark.parametrize("name", RUN)
def test_decode_of_a_full_cache_is_the_models_own(name, uncut):
    # A row that evicts at every step holds no more than the prompt's tokens.
    n = 1 if method(name).when == "step" else NEW
    found = answers(uncut[name])
    assert [row[:n] for row in found] == [row[:n] for row in expected()]
    assert len({tuple(row) for row in expected()}) == len(LENGTHS)  # not degenerate


@pytest.mark.parametrize("name", CUT)
def test_rows_hold_no_more_than_their_budget(name, batch):
    row, held = method(name, keep=KEEP), batch[name].lengths  # [L, B, K]
    assert held.shape == (CONFIG.layers, len(LENGTHS), SIZES.kv_heads)
    most = [row.slots(n) for n in LENGTHS]
    assert (held.mean(axis=(0, 2)) <= most).all() and (held[:, 2:] > 0).all()


def test_row_of_a_padded_batch_equals_its_single_run(batch):
    rows = ("adakv", "kvzip")
    for i in (0, 3):
        prompt = prompts()[i]
        singles = made(CONFIG, tuple(method(n, keep=KEEP) for n in rows), [prompt])
        for name, single in zip(rows, singles, strict=True):
            for layer in range(CONFIG.layers):
                ours = batch[name].positions[layer][i : i + 1]
                assert same_positions(ours, single.positions[layer])
            assert answers(single, [prompt]) == [answers(batch[name])[i]]


@pytest.mark.parametrize("config", MIXED.values(), ids=MIXED)
def test_a_prompt_in_blocks_equals_the_whole(config):
    """Also in a block of one token, and the last block as a question."""
    asked, row = prompts()[2:], method("full")
    cache = None
    for start, end in ((0, 30), (30, 31), (31, 38)):
        blocks = [prompt[start:end] for prompt in asked]
        cache = compress(model(config), blocks, row, cache=cache, headroom=200)
    rest = [prompt[38:] for prompt in asked]
    found = generate(model(config), rest, cache=cache, max_new_tokens=NEW)
    assert found == expected(config)[2:]


def test_questions_of_one_cache_do_not_hear_of_each_other():
    context, row = prompts()[3], method("full")
    questions = [prompts()[2][:5], prompts()[4][:3], prompts()[4][7:8]]
    cache = compress(model(), context, row, headroom=32)
    before = [np.array(leaf) for leaf in jax.tree.leaves(cache)]
    together = generate(model(), questions, cache=cache, max_new_tokens=NEW)
    one = [generate(model(), q, cache=cache, max_new_tokens=NEW)[0] for q in questions]
    assert together == one
    assert together == greedy(model(), [[*context, *q] for q in questions], NEW)
    for old, leaf in zip(before, jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(old, leaf)


@pytest.mark.parametrize("name", MIXED)
def test_layers_of_several_kinds(name):
    config = MIXED[name]
    (cache,) = made(config, (method("full"),), prompts())
    assert answers(cache, config=config) == expected(config)
    carries = [TRAIL in pages.row_state for pages in cache.pools]
    assert carries == [bool(config.trail(layer)) for layer in range(config.layers)]
    with pytest.raises(ValueError, match="keeps all layers in one pool"):
        compress(model(config), prompts(), method("kvzip"))


def test_the_trail_is_held_and_counted():
    asked = Prompts(np.zeros((2, 512), np.int32), np.array([300, 77], np.int32))
    (cache,) = prefill(model(), asked, (method("full"),), headroom=32)
    trails = sum(pages.row_state[TRAIL].nbytes for pages in cache.pools)
    numbers = 2 * 2 * (SIZES.query_heads + 2 * SIZES.kv_heads) * SIZES.head_dim
    assert trails == 4 * CONFIG.layers * numbers  # of two tokens of two sequences
    bare = replace(
        cache, pools=tuple(replace(pages, row_state={}) for pages in cache.pools)
    )
    assert cache.cache_bytes == bare.cache_bytes + trails

    assert (
        full_bytes(model(), Batch(asked, 0, 2, (), asked), 32) * 2 == cache.cache_bytes
    )


@dataclass(frozen=True)
class FedKeys(Score):
    """Not a score: the keys of what was fed, as a layer saw them."""

    @property
    def feed(self):
        return Future()

    def __call__(self, seen):
        return seen.fed.k


def test_what_is_fed_follows_what_is_stored():
    """The keys of fed tokens are those of a sequence that goes on so."""
    asked, rerun = pad(prompts(), CONFIG.vocabulary, CONFIG.max_position), 1
    lengths, stored = jnp.asarray(asked.lengths), asked.lengths - rerun
    fed = pad([[3, 4, 5], [6], [9, 9], [1, 2], [5, 4, 3]], 64, 512, 4)
    keys = jax.random.split(jax.random.key(0), len(LENGTHS))
    x, seen = model().embed(jnp.asarray(asked.token_ids)), []
    for i, layer in enumerate(model().layers):
        number, look = (jnp.int32(i), jnp.int32(rerun)), looks((method("full"),))
        x, one = see_layer(layer, x, lengths, keys, *number, last=False, **look)
        seen.append(one)
    row = replace(method("full"), score=FedKeys())
    found = fed_scores(model(), asked, seen, [row], rerun, fed)[FedKeys()]
    whole = np.zeros((len(LENGTHS), max(LENGTHS) + 4), np.int32)
    for row, prompt, n, more in zip(
        whole, prompts(), stored, fed.token_ids, strict=True
    ):
        row[: n + 4] = [*prompt[:n], *more]
    x, at = model().embed(jnp.asarray(whole)), jnp.arange(whole.shape[1])
    position = jnp.broadcast_to(at, whole.shape)
    for layer, ours in zip(model().layers, found, strict=True):
        _, k, _ = layer.attention.entries(layer.attention_norm(x), position)
        for b, (n, count) in enumerate(zip(stored, fed.lengths, strict=True)):
            right = k[b, n : n + count]
            np.testing.assert_allclose(ours[b, :count], right, rtol=1e-4, atol=1e-4)
        x = layer(x, position)


def test_words_to_repeat_by_stand_right_before_a_chunk():
    """Padding is after what is real, so that a token's neighbour is at its side."""
    asked = pad(prompts(), CONFIG.vocabulary, CONFIG.max_position)
    stored = asked.lengths - 1
    for run in chunks(Repeat(16, 4), asked, stored, (7, 8), None):
        for at, n in zip(run.position, stored, strict=True):
            real = at[at >= 0]
            assert at[: len(real)].tolist() == list(range(n, n + len(real)))


def test_a_decode_step_projects_once():
    """The trail is of the very product that the entries are of."""
    (cache,) = made(CONFIG, (method("full"),), prompts())
    ones = jnp.ones(len(LENGTHS), jnp.int32)
    step = jax.jit(lambda model, ids: feed(model, cache, ids, ones))
    compiled = step.lower(model(), ones[:, None]).compile()
    fused = model().layers[0].attention.qkv[...]
    inner = fused.size // fused.shape[0]
    text = compiled.as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    of_qkv = [line for line in products if f"f32[{len(LENGTHS)},{inner}]" in line]
    assert len(of_qkv) == CONFIG.layers, products


def test_eight_devices_answer_as_one():
    """Sequences over data, kv heads and their trail over tensor."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), (AxisType.Auto,) * 2)
    tensor, inner = PartitionSpec("tensor"), PartitionSpec(None, "tensor")
    rules = dict(qkv=inner, out=tensor, channels=inner, channels_bias=tensor)
    rules |= dict(heads=inner, heads_bias=tensor, temperature=tensor)
    split = split_decoder(model(), mesh, jax.device_put, rules)
    four, row = prompts()[1:], method("snapkv", keep=KEEP)
    cache = compress(split, four, row, headroom=32)
    shard = cache.pools[0].row_state[TRAIL].addressable_shards[0].data
    assert shard.shape == (1, 1, 1, 1, *SIZES.trail)
    questions = [prompt[-2:] for prompt in four]
    found = generate(split, questions, cache=cache, max_new_tokens=NEW)
    alone = compress(model(), four, row, headroom=32)
    assert found == generate(model(), questions, cache=alone, max_new_tokens=NEW)


@pytest.mark.parametrize("name", ["adakv", "kvzip"])
def test_a_saved_cache_answers_alike(name, batch, tmp_path):
    batch[name].save(tmp_path / "cache", model())
    again = load_cache(tmp_path / "cache", model(), headroom=32)
    for ours, theirs in zip(again.pools, batch[name].pools, strict=True):
        np.testing.assert_array_equal(ours.row_state[TRAIL], theirs.row_state[TRAIL])
    assert answers(again) == answers(batch[name])
