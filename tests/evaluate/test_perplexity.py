"""Perplexity: that of the model itself from a full cache, worse from a small one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.evaluate.entrants import entrants
from jaxkv.evaluate.perplexity import draw_texts, perplexities
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.train.tokenizer import word_tokenizer


@pytest.fixture(scope="module")
def texts():
    return draw_texts(word_tokenizer(), 120, 3, 2, 0, 8, 512)


def test_texts_fill_batches_and_overlap_by_a_token(texts):
    assert len(texts) == 2
    for batch in texts:
        assert batch.starts.token_ids.shape == (2, 512)
        assert batch.rest.token_ids.shape == (2, 9)
        for row in range(2):
            last = batch.starts.token_ids[row, batch.starts.lengths[row] - 1]
            assert batch.rest.token_ids[row, 0] == last
    assert not np.array_equal(texts[0].starts.token_ids, texts[1].starts.token_ids)


def test_full_has_the_perplexity_of_the_model(texts):
    config = DecoderConfig(
        width=16, feed_forward=16, layers=2, query_heads=2, kv_heads=1, head_dim=8
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    rows = entrants(["full", "random"], (0.1,))
    ticks = []
    found = perplexities(model, rows, texts, headroom=8, tick=ticks.append)
    losses = [
        loss
        for batch in texts
        for i in range(2)
        for loss in _losses(model, batch.starts, batch.rest, i)
    ]
    full, random = (found[row] for row in rows)
    assert full.tokens == random.tokens == len(losses) == 4 * 8
    assert full.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert random.value != pytest.approx(full.value, rel=1e-4)
    assert ticks == ["perplexity", "full", "random"] * 2


def _losses(model, starts, rest, i):
    """-log p of each token after the start, by one pass over the whole text."""
    start = starts.token_ids[i, : starts.lengths[i]]
    after = rest.token_ids[i, 1 : rest.lengths[i]]
    ids = jnp.asarray(np.concatenate([start, after]))[None]
    log_p = jax.nn.log_softmax(model(ids)[0], axis=-1)
    return [-float(log_p[len(start) + j - 1, token]) for j, token in enumerate(after)]
