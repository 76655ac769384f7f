"""Fewer kv heads, each the mean of several: the start of GQA and MQA up-training.

GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints,
arXiv 2305.13245; MQA is Shazeer's, arXiv 1911.02150. With s = K / kv_heads

    W_k,j = mean of W_k of kv heads j s .. (j + 1) s - 1,    W_v,j likewise

and queries stay. Nothing is lost where those heads were equal; elsewhere training is
meant to follow, for 5 % of the original steps in the paper.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.convert.base import Progress, Rows, Way, parameters
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import assemble


@dataclass(frozen=True)
class GroupedHeads(Way):
    """How many kv heads are to be left."""

    kv_heads: int | None = None
    """of each layer; half of them when not given"""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The model with fewer kv heads, an ordinary one; layers of latents stay.

        Raises:
          ValueError: no layer has grouped queries, or so many heads are not fewer, or
            do not divide theirs.
        """
        config = replace(model.config, kv_heads=self._heads(model.config))
        arrays = parameters(model)
        for i, layer in enumerate(model.layers):
            if progress is not None:
                progress(i, config.layers, "layers")
            if isinstance(layer.attention, GroupedQuery):
                pooled = _pooled(layer.attention, config)
                attention = {**arrays["layers"][i]["attention"], **pooled}
                arrays["layers"][i] = {**arrays["layers"][i], "attention": attention}
        return assemble(config, arrays, model.table[...].dtype)

    def _heads(self, config: DecoderConfig) -> int:
        K = config.kv_heads
        if config.attention and None not in config.attention:
            raise ValueError(
                "No layer has grouped queries, whose kv heads could be pooled; "
                "convert a model of grouped queries."
            )
        if K == 1:
            raise ValueError("The model has one kv head already; it cannot have fewer.")
        fewer = [k for k in range(1, K) if K % k == 0]
        heads = fewer[-1] if self.kv_heads is None else self.kv_heads
        if heads not in fewer:
            raise ValueError(
                f"kv_heads={heads} are not fewer than the model's {K} and a divisor "
                f"of them; give one of {', '.join(map(str, fewer))}."
            )
        return heads


@dataclass(frozen=True)
class OneHead(Way):
    """One kv head for all queries."""

    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """As `GroupedHeads`, with kv_heads=1."""
        return GroupedHeads(kv_heads=1)(model, rows, progress)


def _pooled(attention: GroupedQuery, config: DecoderConfig) -> dict:
    """qkv and out, the means taken in fp32."""
    K, G, H = config.kv_heads, attention.config.group, config.head_dim
    qkv_DKGH = attention.qkv[...]
    D = len(qkv_DKGH)
    query_DKGH = qkv_DKGH[:, :, :G].reshape(D, K, -1, H)
    each_DKXAH = qkv_DKGH[:, :, G:].reshape(D, K, -1, 2, H)
    mean_DKAH = each_DKXAH.astype(jnp.float32).mean(axis=2).astype(qkv_DKGH.dtype)
    return {
        "qkv": jnp.concatenate([query_DKGH, mean_DKAH], axis=2),
        "out": attention.out[...].reshape(K, -1, H, D),
    }
