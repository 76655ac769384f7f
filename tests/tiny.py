"""The decoder and prompts that tests of generation share: small, and not degenerate."""

from functools import cache

import numpy as np
from flax import nnx

from jaxkv.method import method, names
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder

CONFIG = DecoderConfig(
    vocabulary=64,
    width=32,
    feed_forward=32,
    layers=2,
    query_heads=8,
    kv_heads=4,
    head_dim=16,
    max_position=2048,
    initial_scale=0.2,
)
LENGTHS = (3, 40, 64, 97, 200, 301, 411, 512)  # one bucket of prompts.SMALLEST
KEEP = 0.3


@cache
def tiny_model():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


def tiny_prompts(lengths=LENGTHS):
    """A prompt of each length; the same one whatever stands beside it."""
    return [
        np.random.default_rng(n).integers(0, CONFIG.vocabulary, n).tolist()
        for n in lengths
    ]


def all_rows(keep=KEEP):
    """Every row that ships, at one budget."""
    return tuple(method(name, keep=keep) for name in names())
