"""Query filters: the direction that each kv head's queries have in common.

Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression, arXiv 2503.02812.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from jaxkv.calibrate.rows import task_tokens
from jaxkv.calibrate.walk import walk
from jaxkv.models.decoder import Decoder
from jaxkv.prompts import pad

SAMPLED = 3000  # queries of a head
Progress = Callable[[int, int, str], None]  # done, total, what


def make(
    model: Decoder,
    tokenizer: Tokenizer | None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """The filters of a model on the contexts and questions of our own tasks."""
    if tokenizer is None:
        raise ValueError(
            "Query filters are made from text, and there is no tokenizer to encode it; "
            "give one, or run jaxkv calibrate --method qfilters on the model's folder."
        )
    tokens = task_tokens(tokenizer, model.config.max_position)
    return query_filters(model, tokens, progress=progress)


def query_filters(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """{"filter": [L, K, H] fp32} from token sequences of any lengths.

        filter = mean_g(-sigma_g v_g),   Q_g = U S V^T,   v_g the first column of V

    Q_g are the rotated queries of query head g, at 3000 tokens drawn from all of the
    sequences (all of them where there are fewer), the same ones for every head and
    layer. sigma_g is 1 where more than half of U's first column is above 0, else -1,
    so that sigma_g v_g points along most queries, whatever sign the decomposition has.

    Raises:
      ValueError: there is no sequence, or one is empty, too long or of other ids.
    """
    if not len(sequences):
        raise ValueError("There is no text to make query filters from; give some.")
    config = model.config
    if any(config.attention):
        raise ValueError(
            "Query filters are directions of whole keys of kv heads, which layers of "
            "this model do not cache; use a method without calibration."
        )
    rows = [list(row) for row in sequences]
    prompts = pad(rows, config.vocabulary, config.max_position, smallest=8)
    at = _drawn(prompts.lengths, prompts.token_ids.shape[1], seed)
    found = []
    for layer, q in enumerate(walk(model, jnp.asarray(prompts.token_ids), _queries)):
        if progress is not None:
            progress(layer, config.layers, "query filters")
        q_XNH = np.asarray(q.reshape(-1, *q.shape[2:])[at].astype(jnp.float32))
        direction_NH = np.stack([_direction(q_XH) for q_XH in q_XNH.swapaxes(0, 1)])
        by_group = direction_NH.reshape(config.rows(0), -1, config.entry(0))
        found.append(-by_group.mean(axis=1))
    return {"filter": np.stack(found).astype(np.float32)}


def _queries(q_SNH: Float[Array, "S N H"], k_SKH: Float[Array, "S K H"]):
    return q_SNH


def _drawn(lengths: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Which of the B x width slots are looked at: real tokens, in order."""
    real = np.flatnonzero((np.arange(width)[None] < lengths[:, None]).ravel())
    if len(real) > SAMPLED:
        drawn = np.random.default_rng(seed).choice(real, SAMPLED, replace=False)
        real = np.sort(drawn)
    return real


def _direction(q_XH: np.ndarray) -> np.ndarray:
    """sigma v: the first right singular vector, on the side of most queries."""
    q_XH = q_XH.astype(np.float64)
    v_H = np.linalg.eigh(q_XH.T @ q_XH)[1][:, -1]
    along_X = q_XH @ v_H
    # Between as many on either side the longer ones decide, and not the solver's sign.
    most = np.sign(along_X).sum() or along_X.sum()
    return v_H if most > 0 else -v_H
