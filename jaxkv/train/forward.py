"""A decoder's forward pass as training runs it: layers cast, gathered, recomputed."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxkv.mesh import ROWS, lay
from jaxkv.models.decoder import Decoder
from jaxkv.models.layers import lookup
from jaxkv.rules import GATHERED, for_use
from pallas_kernels.sharded import over_mesh


def forward(
    model: Decoder,
    token_ids: Int[Array, "B T"],
    position: Int[Array, "B T"],
    dtype: DTypeLike,
) -> Float[Array, "B T D"]:
    policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)

    def run(i):
        def one(layer, x, position):
            return for_use(layer, f"layers.{i}", dtype)(x, position)

        return jax.checkpoint(one, policy=policy)

    x_BTD = embed(model, token_ids, dtype)
    for i, layer in enumerate(model.layers):
        x_BTD = run(i)(layer, x_BTD, position)
    return for_use(model.norm, "norm", dtype)(x_BTD)


def embed(model, token_ids, dtype):
    table = for_use(model.table, "table", dtype)[...]
    arrays = {"table": table, "ids": token_ids}
    x_BTD = over_mesh(
        lambda mine: lookup(mine["table"], mine["ids"]),
        arrays,
        {"table": "-J", "ids": "B"},
        "B-J",
    )
    return lay(x_BTD, PartitionSpec(ROWS))


def logits_table(model, dtype):
    tied = model.config.tie_embeddings
    name, table = ("table", model.table) if tied else ("head", model.head)
    return lay(for_use(table, name, dtype)[...], PartitionSpec("tensor"))
