"""Small models and rows that tests of conversions share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.presets import random_decoder

CONFIG = DecoderConfig(
    vocabulary=40,
    width=48,
    feed_forward=36,
    layers=3,
    query_heads=6,
    kv_heads=2,
    head_dim=16,
    initial_scale=0.2,
)


def fresh(config: DecoderConfig) -> Decoder:
    """Random weights, fp32."""
    return random_decoder(config, 0, jnp.float32)


def parameters_of(model: Decoder) -> dict:
    """Nested by attribute, in dicts that may be changed."""
    arrays = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x: x, arrays)


def rows_of(config: DecoderConfig, lengths, seed: int = 0) -> list[list[int]]:
    """Random tokens, rows of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocabulary, n).tolist() for n in lengths]
