"""A record of random queries, keys and values for the tests of parts."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.models.config import DecoderConfig
from jaxkv.seen import Fed, Seen

D = 24  # model width


def random_seen(lengths, S, *, W=64, N=8, K=4, H=16, rerun=0, seed=0):
    """A padded batch; the same row comes out whatever rows stand beside it."""
    rows = [_row(n, S, W, N, K, H, seed + 100 * n) for n in lengths]
    q, every_q, k, v = (
        jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True)
    )
    n = jnp.array(lengths, jnp.int32)[:, None]
    position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (len(lengths), S))
    at = n - W + jnp.arange(W, dtype=jnp.int32)[None]
    keys = [jax.random.key(seed + length) for length in lengths]
    return Seen(
        q=q,
        q_position=jnp.where(at >= 0, at, -1),
        every_q=every_q,
        k=k,
        v=v,
        position=position,
        valid=position < n,
        stored=position < n - rerun,
        layer=jnp.int32(1),
        inverse_frequencies=jnp.asarray(
            DecoderConfig(head_dim=H).inverse_frequencies()
        ),
        out=jax.random.normal(jax.random.key(seed), (K, N // K, H, D)),
        key=jnp.stack(keys),
        scale=H**-0.5,
        value_dim=H,
        calibration=random_calibration(K, H, seed),
        fed=_fed(k, n, N, H, seed),
    )


def random_calibration(K, H, seed=0):
    """One layer's calibrations of every kind, no two heads alike."""
    rng = np.random.default_rng(seed)
    arrays = {
        "query_filters": {"filter": rng.normal(size=(K, H))},
        "head_classes": {"echo": rng.random(K), "induction": rng.random(K)},
        "gates": {"gate": rng.random(K)},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)


def _fed(k, n, N, H, seed, F=12):
    """Fed tokens that look at keys of the prompt, each row at its own."""
    rows = []
    for keys, length in zip(np.asarray(k), np.asarray(n)[:, 0], strict=True):
        rng = np.random.default_rng(seed + 1000 + length)
        at = rng.integers(0, length, F)
        like = np.repeat(keys[at], N // keys.shape[1], axis=1)
        rows.append((like + 0.3 * rng.normal(size=like.shape), keys[at]))
    q, fed_k = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*rows, strict=True))
    position = n + jnp.arange(F, dtype=jnp.int32)[None]
    return Fed(q, fed_k, position, jnp.int32(0))


def _row(length, S, W, N, K, H, seed):
    """Keys whose size varies by token and by head, so that scores and heads differ."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(W, N, H)) * 1.5
    k = rng.normal(size=(S, K, H)) * rng.uniform(0.3, 2.0, (S, K, 1))
    k = k * np.linspace(0.5, 1.5, K)[None, :, None]
    v = rng.normal(size=(S, K, H))
    every_q = rng.normal(size=(S, N, H)) + np.linspace(0, 2, H)
    last = min(W, length)
    every_q[length - last : length] = q[W - last :]
    return q, every_q, k, v
