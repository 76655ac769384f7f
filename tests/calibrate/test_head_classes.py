"""Echo and induction against a dense attention matrix, by the tokens themselves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.calibrate import head_classes
from jaxkv.calibrate.head_classes import REPEATS, make
from jaxkv.calibrate.walk import walk
from jaxkv.models.decoder import Decoder
from jaxkv.train.tokenizer import word_tokenizer
from tests.tiny import CONFIG, tiny_model

SIZE, FIRST = 32, word_tokenizer().encode("").ids  # half the vocabulary; <bos>


def _keep(q_SNH, k_SKH):
    return q_SNH, k_SKH


def brute_force(q, k, tokens):
    """[2, N]: for every token said again, attention to where it stood, and after."""
    (S, N, H), K = q.shape, k.shape[1]
    found = np.zeros((2, N))
    z = np.einsum("snh,tnh->nst", q, np.repeat(k, N // K, axis=1)) / np.sqrt(H)
    z = np.where(np.tri(S, dtype=bool)[None], z, -np.inf)
    a = np.exp(z - z.max(axis=-1, keepdims=True))
    a = a / a.sum(axis=-1, keepdims=True)
    counted = range(len(FIRST) + SIZE, S)
    for i in counted:
        for j in range(len(FIRST), i):
            if tokens[j] == tokens[i]:
                found += np.stack([a[:, i, j], a[:, i, j + 1]]) / len(counted)
    return found


def test_scores_equal_the_definition(monkeypatch):
    model = tiny_model()
    tokens = head_classes._probes(SIZE, FIRST, CONFIG.vocabulary, 0)
    assert tokens.shape == (head_classes.PROBES, 1 + REPEATS * SIZE)
    assert len(set(tokens[0, 1:].tolist())) == SIZE
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens)
    seen = [
        [np.asarray(x, np.float64) for x in layer]
        for layer in walk(model, jnp.asarray(tokens), _keep)
    ]
    by_head = np.stack(
        [
            np.mean([brute_force(*row) for row in zip(q, k, tokens, strict=True)], 0)
            for q, k in seen
        ]
    )
    by_group = by_head.reshape(CONFIG.layers, 2, CONFIG.kv_heads, CONFIG.group).max(-1)
    monkeypatch.setattr(head_classes, "LONGEST", SIZE)
    found = make(model, word_tokenizer())
    for i, name in enumerate(("echo", "induction")):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], by_group[:, i], rtol=1e-3, atol=1e-6)
    assert not np.allclose(found["echo"], found["induction"])


def test_a_head_made_to_look_back_is_found():
    """Keys that name their token, queries that ask for the same one: an echo head."""
    S, size, H = 4 * 12, 12, 16
    name_SH = np.tile(np.eye(H)[:size], (REPEATS, 1)) * 12.0
    q = np.stack([name_SH, np.roll(name_SH, 1, axis=0), 0 * name_SH], axis=1)
    k = np.stack([name_SH, np.roll(name_SH, 2, axis=0), name_SH], axis=1)
    found = head_classes._echo_and_induction(
        jnp.asarray(q, jnp.float32),
        jnp.asarray(k, jnp.float32),
        size=size,
        first=0,
        scale=1.0,
    )
    places = np.arange(S) // size + 1  # a token's places up to itself
    itself = (1 - 1 / places)[size:].mean()
    echo, induction = np.asarray(found)
    np.testing.assert_allclose(echo[0], itself, rtol=1e-3)
    # Key j names the token before the one before it: the one after a token's place.
    assert induction[1] > 0.9 and echo[1] < 0.01 and induction[0] < 0.01
    assert 0 < echo[2] < 0.1


def test_tokens_that_come_first_are_not_the_probe():
    with_first = make(tiny_model(), word_tokenizer())
    without = make(tiny_model())
    assert any(np.abs(with_first[n] - without[n]).max() > 0 for n in without)


def test_a_model_without_room_is_refused():
    short = Decoder(replace(CONFIG, max_position=9), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="max_position=9 .* no room to probe"):
        make(short)


def test_programs_are_made_once():
    jax.clear_caches()
    make(tiny_model())
    from jaxkv.calibrate.walk import _see

    before = _see._cache_size()
    make(tiny_model(), seed=1)
    assert _see._cache_size() == before == 1
