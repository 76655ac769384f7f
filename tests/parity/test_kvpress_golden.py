"""Scores and evicted sets equal those that kvpress 0.5.5 computed, kept as data."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.attention.rope import rotate
from jaxkv.budget.head_adaptive import SafeguardedHeads
from jaxkv.cache.rerotated import Rerotated, turn
from jaxkv.kept import Kept
from jaxkv.score.expected_attention import ExpectedAttention
from jaxkv.score.key_difference import KeyDifference
from jaxkv.score.key_norm import KeyNorm
from jaxkv.score.last_query import LastQuery
from jaxkv.score.recency import Recency
from jaxkv.score.window_attention import WindowAttention
from jaxkv.seen import Seen
from jaxkv.select.critical import Critical, projected_norm
from jaxkv.select.top_k import TopK

GOLDEN = Path(__file__).parents[1] / "golden" / "kvpress_0_5_5.npz"
RELATIVE = 1e-4
WINDOW = 64


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def seen(golden):
    B, S, _, N, K, H, _, layer = (int(n) for n in golden["meta"])
    position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    flat = jnp.einsum("BTD,ND->BTN", golden["h"], golden["wq"])
    q = rotate(flat.reshape(B, S, N, H), position, golden["inv_freq"])
    wo = jnp.asarray(golden["wo"])  # [D, N * H]
    return Seen(
        scale=H**-0.5,
        value_dim=H,
        q=q[:, -WINDOW:],
        q_position=position[:, -WINDOW:],
        every_q=q,
        k=jnp.asarray(golden["k"]).swapaxes(1, 2),
        v=jnp.asarray(golden["v"]).swapaxes(1, 2),
        position=position,
        valid=jnp.ones((B, S), bool),
        stored=jnp.ones((B, S), bool),
        layer=jnp.int32(layer),
        inverse_frequencies=jnp.asarray(golden["inv_freq"]),
        out=wo.T.reshape(K, N // K, H, -1),
        key=jax.random.split(jax.random.key(0), B),
    )


def assert_scores(score, seen, theirs, protected):
    """Equal scores where neither side protects, and the same tokens protected."""
    mask = np.asarray(score.protected(seen))
    np.testing.assert_array_equal(mask, protected)
    free = np.broadcast_to(~mask[:, None], theirs.shape)
    ours = np.asarray(score(seen))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[free], theirs[free], rtol=RELATIVE)


def assert_same_sets(score, seen, theirs):
    """The same slots stay, whatever the budget."""
    protected = score.protected(seen)[:, None]
    length = jnp.zeros(theirs.shape[:2], jnp.int32)
    order = np.asarray(TopK()(seen, score(seen), protected, ~protected, length))
    best = np.argsort(-theirs, axis=-1, kind="stable")
    for slots in range(4, theirs.shape[-1]):
        kept, expected = np.sort(order[..., :slots]), np.sort(best[..., :slots])
        np.testing.assert_array_equal(kept, expected)


def test_snapkv_scores(golden, seen):
    theirs = golden["score_snapkv_w64_k5"]
    protected = (theirs == theirs.max()).all(axis=1)
    assert protected.sum() == WINDOW * len(theirs)
    score = WindowAttention(window=WINDOW, pool=5, pooling="average")
    assert_scores(score, seen, theirs, protected)


def test_tova_scores(golden, seen):
    theirs = golden["score_tova"]
    protected = (theirs == theirs.max()).all(axis=1)
    assert protected[:, -1].all() and protected.sum() == len(theirs)
    score = LastQuery(protect_newest=True)
    assert_scores(score, seen, theirs, protected)
    assert_same_sets(score, seen, theirs)


def test_key_norms(golden, seen):
    theirs = golden["score_knorm"]
    assert_scores(KeyNorm(), seen, theirs, np.zeros(seen.valid.shape, bool))


def test_key_differences(golden, seen):
    theirs = golden["score_keydiff"]
    assert_scores(KeyDifference(), seen, theirs, np.zeros(seen.valid.shape, bool))
    assert_same_sets(KeyDifference(), seen, theirs)


def test_expected_attention_scores(golden, seen):
    theirs = golden["score_expected_attention"]
    protected = (theirs == theirs.max()).all(axis=1)
    assert protected.sum() == 4 * len(theirs)
    assert_scores(ExpectedAttention(), seen, theirs, protected)
    assert_same_sets(ExpectedAttention(), seen, theirs)


def test_critical_keeps_the_same_slots_for_the_same_reasons(golden, seen):
    """CriticalKV over SnapKV, half kept: 75 tokens by score, 75 by what they move."""
    theirs = golden["score_critical_snapkv"]
    B, K, S = theirs.shape
    sure, slots = theirs == np.finfo(np.float32).max, S // 2
    np.testing.assert_array_equal(sure.sum(axis=-1), slots // 2)
    score = WindowAttention(window=WINDOW, pool=5, pooling="average")
    scores, protected = score(seen), score.protected(seen)[:, None]
    weighted = (scores + 1e-4) * projected_norm(seen.v, seen.out)
    ours = np.asarray(weighted)[~sure]
    np.testing.assert_allclose(ours, theirs[~sure], rtol=RELATIVE)
    length = jnp.full((B, K), slots)
    order = np.asarray(Critical()(seen, scores, protected, ~protected, length))
    for b, h in np.ndindex(B, K):
        first, then = order[b, h, : slots // 2], order[b, h, slots // 2 :]
        assert set(first.tolist()) == set(np.flatnonzero(sure[b, h]).tolist())
        best = np.argsort(-theirs[b, h], kind="stable")[slots // 2 :]
        np.testing.assert_array_equal(then, best)


def test_streaming_keeps_the_same_slots(golden, seen):
    theirs = golden["score_streaming_cr037"]
    slots = int(theirs[0, 0].sum())
    score = Recency(sinks=4)
    protected = score.protected(seen)[:, None]
    length = jnp.full(theirs.shape[:2], slots)
    order = TopK()(seen, score(seen), protected, ~protected, length)
    for b, h in np.ndindex(theirs.shape[:2]):
        kept = np.sort(np.asarray(order[b, h, :slots]))
        np.testing.assert_array_equal(kept, np.flatnonzero(theirs[b, h]))


def test_adakv_evicts_exactly_the_same_slots(golden, seen):
    theirs = golden["adakv_knorm06_evicted"]
    B, K, S = theirs.shape
    slots = S - int(S * 0.6)
    scores = KeyNorm()(seen)
    nothing, all_of_them = jnp.zeros((B, 1, S), bool), jnp.ones((B, 1, S), bool)
    length = SafeguardedHeads(floor=0.2)(
        scores[:, None],
        nothing[:, None],
        all_of_them[:, None],
        jnp.full((B, 1, K), slots),
    )
    order = np.asarray(TopK()(seen, scores, nothing, all_of_them, length[:, 0]))
    ours = np.ones_like(theirs)
    for b, h in np.ndindex(B, K):
        ours[b, h, order[b, h, : length[b, 0, h]]] = False
    np.testing.assert_array_equal(ours, theirs)
    assert len(set(np.asarray(length).ravel().tolist())) > 1  # the heads do differ


def test_rerotated_keys_and_their_values(golden, seen):
    """KeyRerotation over Knorm at a half. Its keys stand at 0 .. n - 1, with the next
    token at n; ours stand as much higher as the next token does, at S.
    """
    keys, values = golden["rerotate_knorm_keys"], golden["rerotate_knorm_values"]
    B, K, n, _ = keys.shape
    S = seen.k.shape[1]
    nothing, every = jnp.zeros((B, 1, S), bool), jnp.ones((B, 1, S), bool)
    length = jnp.full((B, K), n)
    order = TopK()(seen, KeyNorm()(seen), nothing, every, length)
    kept = Kept(seen.k, seen.v, seen.position, order, length)
    stored = Rerotated()(seen, kept)
    back = turn(stored.k, jnp.full((B, K, S), n - S), seen.inverse_frequencies)
    for b, h in np.ndindex(B, K):
        at = np.sort(np.asarray(order[b, h, :n]))
        ours = np.asarray(back[b, :, h])[at]
        gap = np.abs(ours - keys[b, h]).max() / np.abs(keys[b, h]).max()
        assert gap <= RELATIVE
        np.testing.assert_array_equal(np.asarray(stored.v[b, :, h])[at], values[b, h])
