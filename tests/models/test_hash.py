"""A model's hash: equal for equal models however they lie, and for no others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkv.models import folder
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import assemble
from jaxkv.models.frequencies import RopeScaling
from jaxkv.models.hash import model_hash

CONFIG = DecoderConfig(
    vocabulary=40, width=24, feed_forward=36, layers=2, query_heads=4, head_dim=8
)


def counting(config=CONFIG, dtype=jnp.float32):
    """A model whose parameters count up: the same under any random number generator."""
    empty = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))
    shapes = nnx.to_pure_dict(nnx.state(empty, nnx.Param))
    arrays = jax.tree.map(
        lambda a: jnp.asarray((np.arange(a.size) % 64).reshape(a.shape), a.dtype),
        shapes,
    )
    return assemble(config, arrays, dtype)


HASH = model_hash(counting())


def test_it_is_the_hash_it_always_was():
    """Saved caches hold it: a change here refuses every one of them."""
    assert HASH == "1838a22f8e929bf6a46fe8dd37d5a63a93d28cafb2679de6f37bb948f45e2918"
    assert model_hash(counting()) == HASH


def test_it_is_of_the_values_wherever_they_lie(tmp_path):
    folder.save(counting(), None, tmp_path / "model")
    assert model_hash(folder.load(tmp_path / "model")[0]) == HASH
    mesh = Mesh(np.array(jax.devices()[:4]), ("tensor",))
    graph, state = nnx.split(counting())
    spread = jax.tree.map(
        lambda a: jax.device_put(
            a, NamedSharding(mesh, PartitionSpec("tensor" if a.ndim > 1 else None))
        ),
        state,
    )
    model = nnx.merge(graph, spread)
    assert len(model.table[...].sharding.device_set) == 4
    assert model_hash(model) == HASH


def test_no_host_copy_stays_behind(monkeypatch):
    """A parameter of the model is never read itself: numpy would keep what it read."""
    model, read = counting(), []
    plain = np.asarray
    monkeypatch.setattr(
        "jaxkv.models.hash.np.asarray", lambda a: read.append(a) or plain(a)
    )
    model_hash(model)
    own = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))
    assert len(read) == len(own)
    assert not {id(a) for a in read} & {id(a) for a in own}


SCALING = RopeScaling(8.0, 1.0, 4.0, 64)
OTHERS = {
    "theta": replace(CONFIG, rope_theta=500_000.0),
    "eps": replace(CONFIG, norm_eps=1e-6),
    "scaling": replace(CONFIG, rope_scaling=SCALING),
    "other scaling": replace(CONFIG, rope_scaling=replace(SCALING, factor=4.0)),
    "tied": replace(CONFIG, tie_embeddings=True),
    "fewer layers": replace(CONFIG, layers=1),
}


def test_what_is_computed_counts():
    one_value = counting()
    one_value.layers[1].mlp_norm.scale[...] += np.eye(24, dtype=np.float32)[3]
    models = [one_value, counting(dtype=jnp.bfloat16), *map(counting, OTHERS.values())]
    assert len({HASH, *map(model_hash, models)}) == 1 + len(models)


@pytest.mark.parametrize(
    "change",
    [{"stop_tokens": (3,)}, {"max_position": 64}, {"initial_scale": 0.1}],
    ids=["stop tokens", "context", "initial scale"],
)
def test_what_changes_no_logit_does_not(change):
    assert model_hash(counting(replace(CONFIG, **change))) == HASH
