"""Bases that turn: the model itself at first, and what was learned within it after."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.cayley import cayley
from jaxkv.convert.low_rank import with_ranks
from jaxkv.convert.matryoshka import MatryoshkaKV
from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.presets import random_decoder
from jaxkv.models.sizes import LowRankSizes
from jaxkv.train.add_ons.bases import Bases, TurnedBases, _alike
from jaxkv.train.config import Stage, Train
from jaxkv.train.documents import documents
from jaxkv.train.feeding import Documents
from jaxkv.train.forward import Student, forward
from jaxkv.train.loop import train
from jaxkv.train.objectives import CrossEntropy, Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import Constant

CONFIG = DecoderConfig(
    width=16,
    feed_forward=16,
    layers=2,
    query_heads=4,
    kv_heads=2,
    head_dim=16,
    max_position=128,
    initial_scale=0.3,
)
DOCUMENTS = Documents(((2, 64),), Recipe(gaps=0.0))


@pytest.fixture(scope="module")
def grouped():
    return random_decoder(CONFIG, 0, "float32")


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).integers(0, 512, (2, 60)).tolist()


@pytest.fixture(scope="module")
def whole(grouped, rows):
    return MatryoshkaKV(keep_bytes=1.0)(grouped, rows)


@pytest.fixture(scope="module")
def batch():
    draw = jax.jit(documents, static_argnums=(1, 2, 3))
    return draw(jax.random.key(3), 2, 64, DOCUMENTS.recipe)


def hidden(model, batch, add_on=None, key=None):
    @jax.jit
    def run(model, add_on, key):
        student, position = Student(model, add_on), batch["position"]
        given = batch["tokens"], position, None, jnp.float32
        return forward(student, *given, key=key).hidden

    return run(model, add_on, key)


def turned(config, scale=0.05):
    """Bases that have moved."""
    made = TurnedBases(config)
    keys = iter(jax.random.split(jax.random.key(7), 3))
    for x in (made.key, made.value, made.mean):
        x[...] = scale * jax.random.normal(next(keys), x[...].shape)
    return made


def test_at_first_and_uncut_the_model_itself(whole, batch):
    theirs = hidden(whole, batch)
    ours = hidden(whole, batch, TurnedBases(whole.config))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_turned_and_uncut_the_model_itself(whole, batch):
    """A basis of full rank holds all, whichever it is."""
    theirs = hidden(whole, batch)
    ours = hidden(whole, batch, turned(whole.config))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_drawn_ranks_are_cuts_of_the_model(whole, batch):
    """What a step sees is the model cut so, with these bases in its own parameters."""
    add_on, key = turned(whole.config), jax.random.key(5)
    ours = hidden(whole, batch, add_on, key)
    within = add_on.into(whole)
    cut = {}
    for i in range(CONFIG.layers):
        drawn = jax.random.randint(jax.random.fold_in(key, i), (2, 2), 1, 9) * 2
        cut[i] = np.asarray(drawn)
    by_hand = _cut_by_hand(within, cut)
    theirs = hidden(by_hand, batch)
    assert np.abs(hidden(whole, batch) - theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_alike_ranks_cut_all_heads_the_same(whole, batch):
    """Bases(alike=1): one rank of all keys and one of all values, from the least on."""
    add_on = TurnedBases(whole.config, Bases(least=3, alike=1.0))
    within, seen = add_on.into(whole), set()
    for seed in range(4):
        key = jax.random.key(seed)
        one_2 = np.asarray(_alike(jax.random.fold_in(key, CONFIG.layers), 6, 16))
        one_21 = one_2[:, None]
        by_hand = _cut_by_hand(within, [np.repeat(one_21, 2, axis=1)] * CONFIG.layers)
        theirs = hidden(by_hand, batch)
        np.testing.assert_allclose(
            hidden(whole, batch, add_on, key), theirs, rtol=1e-4, atol=1e-4
        )
        seen |= set(one_2.tolist())
    assert len(seen) > 4


def test_alike_ranks_keep_every_sum_as_often():
    """And lie between the least and a whole head."""
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: _alike(key, 2, 16))(keys))
    assert drawn.min() == 2 and drawn.max() == 16
    counts = np.bincount(drawn.sum(axis=1), minlength=33)[4:]
    assert counts.sum() == 4000 and counts.min() > 90 and counts.max() < 190


def test_a_share_of_the_steps_has_alike_ranks(whole, batch):
    """The others draw for each head, as Bases() does."""
    some, own = (TurnedBases(whole.config, Bases(alike=alike)) for alike in (0.5, 0.0))
    keys = jax.random.split(jax.random.key(1), 12)
    same = [
        bool(
            np.allclose(hidden(whole, batch, some, key), hidden(whole, batch, own, key))
        )
        for key in keys
    ]
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize("change", [{"least": 0}, {"least": 9}, {"alike": 1.5}])
def test_draws_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match="give 1 to 8 eighths"):
        Bases(**change)


def _cut_by_hand(model, ranks):
    """Columns beyond a head's rank are 0, and the values' mean fills what they held."""
    copied = with_ranks(model, {})
    for i, layer in enumerate(copied.layers):
        attention = layer.attention
        at = np.arange(CONFIG.head_dim)
        for basis, of in ((attention.key_basis, 0), (attention.value_basis, 1)):
            kept = at[None, None] < ranks[i][of][:, None, None]
            basis[...] = jnp.where(kept, basis[...], 0)
    return copied


def test_ranks_are_drawn_anew(whole, batch):
    add_on = TurnedBases(whole.config)
    keys = jax.random.split(jax.random.key(0), 2)
    one, two = (hidden(whole, batch, add_on, key) for key in keys)
    assert np.abs(one - two).max() > 0.01


def test_what_goes_in_is_orthogonal(whole):
    within = turned(whole.config).into(whole)
    for before, after in zip(whole.layers, within.layers, strict=True):
        U = np.asarray(after.attention.key_basis[...], np.float64)
        np.testing.assert_allclose(U @ U.swapaxes(1, 2), [np.eye(16)] * 2, atol=1e-5)
        assert np.abs(U - before.attention.key_basis[...]).max() > 0.05
    Q = cayley(turned(whole.config).key[...][1])
    ours = whole.layers[1].attention.key_basis[...] @ Q
    theirs = within.layers[1].attention.key_basis[...]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_run_learns_and_its_model_is_cut_again(grouped, whole, rows, tmp_path):
    folder.save(whole, None, tmp_path / "whole")
    run = Train(
        model=str(tmp_path / "whole"),
        teacher="itself",
        add_on=Bases(),
        trainable=("add_on.*",),
        stages=(Stage(20, DOCUMENTS),),
        objectives=(Divergence(weight=0.25), CrossEntropy(weight=0.75)),
        optimizer=AdamW(Constant(0.02), weight_decay=0.0),
        dtype="float32",
        log_every=5,
        save_every=20,
    )
    partial(train, devices=jax.devices()[:1])(run, tmp_path / "run")
    learned, _ = folder.load(tmp_path / "run" / "model", "float32")
    assert learned.config.attention == whole.config.attention
    moved = learned.layers[0].attention.key_basis[...]
    assert np.abs(moved - whole.layers[0].attention.key_basis[...]).max() > 0.01
    same = learned.layers[0].attention.grouped.qkv[...]
    np.testing.assert_allclose(
        same, whole.layers[0].attention.grouped.qkv[...], rtol=1e-2, atol=1e-2
    )
    cut = MatryoshkaKV(keep_bytes=0.5, search=False)(learned, rows)
    assert cut.config.sizes(1) == LowRankSizes((8, 8), (8, 8))
    kept = cut.layers[0].attention.key_basis[...]
    np.testing.assert_array_equal(kept, moved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention": ()}, "Layer 0 has no bases of rotated keys"),
        ({"head_dim": 12}, "head_dim=12 is no multiple"),
    ],
)
def test_what_has_no_bases_is_refused(whole, change, said):
    config = replace(whole.config, attention=())
    if "head_dim" in change:
        ranks = LowRankSizes((12, 12), (12, 12))
        change = change | {"attention": (ranks, ranks)}
    with pytest.raises(ValueError, match=said):
        TurnedBases(replace(config, **change))
