"""Head classes: which heads look back to a token said before, and to what followed.

RazorAttention: Efficient KV Cache Compression Through Retrieval Heads, arXiv
2407.15891, with a probe of our own.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from jaxkv.calibrate.walk import Look, walk
from jaxkv.models.decoder import Decoder
from pallas_kernels.column_scores import column_scores

PROBES = 4  # sequences
LONGEST = 2500  # tokens that are repeated
REPEATS = 4
Progress = Callable[[int, int, str], None]  # done, total, what


def make(
    model: Decoder,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    *,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """{"echo": [L, K], "induction": [L, K]} fp32, both in [0, 1].

    The probe is R different random tokens, said four times over, after what the
    tokenizer puts before a text (nothing where it is None). For token i of the second
    to fourth time, with a its attention row:

        echo_i       sum_m a(i, i - m R)        the same token, each time before
        induction_i  sum_m a(i, i - m R + 1)    the token that followed it

    Means over those tokens and four probes, then the maximum over the G query heads of
    a kv head. R = min(2500, max_position // 5, half the vocabulary): the paper's 2500,
    or less for models that are short or know few tokens.

    Raises:
      ValueError: the model takes too few tokens, or knows too few, for any probe.
    """
    config = model.config
    size = min(LONGEST, config.max_position // 5, config.vocabulary // 2)
    if size < 2:
        raise ValueError(
            f"max_position={config.max_position} and a vocabulary of "
            f"{config.vocabulary} leave no room to probe what heads do."
        )
    first = [] if tokenizer is None else tokenizer.encode("").ids
    tokens = _probes(size, first, config.vocabulary, seed)
    look = _look(size, len(first), model.layers[0].attention.scale)
    found = []
    for layer, seen in enumerate(walk(model, jnp.asarray(tokens), look)):
        if progress is not None:
            progress(layer, config.layers, "head classes")
        found.append(np.asarray(seen.mean(axis=0)))  # [2, N], over the probes
    by_head = np.stack(found).reshape(config.layers, 2, config.rows(0), -1)
    echo_LK, induction_LK = by_head.max(axis=-1).swapaxes(0, 1)
    return {"echo": echo_LK, "induction": induction_LK}


def _probes(size: int, first: list[int], vocabulary: int, seed: int) -> np.ndarray:
    """[PROBES, len(first) + REPEATS size] token ids, each row from a key of its own."""
    rows = []
    for row in range(PROBES):
        rng = np.random.default_rng([seed, row])
        # All different, so that a token stood before only where it was said before.
        drawn = rng.choice(vocabulary, size, replace=False)
        rows.append([*first, *np.tile(drawn, REPEATS)])
    return np.array(rows, np.int32)


@lru_cache(maxsize=8)
def _look(size: int, first: int, scale: float) -> Look:
    """One object for each size of a probe, so that its program is made once."""
    return partial(_echo_and_induction, size=size, first=first, scale=scale)


def _echo_and_induction(
    q_SNH: Float[Array, "S N H"],
    k_SKH: Float[Array, "S K H"],
    *,
    size: int,
    first: int,
    scale: float,
) -> Float[Array, "2 N"]:
    """Mean attention to a few earlier places, from the row lse: never S x S."""
    S, N, H = q_SNH.shape
    place_S = jnp.arange(S, dtype=jnp.int32)
    _, lse_1SN = column_scores(
        q_SNH[None], k_SKH[None], place_S[None], place_S[None], scale=scale
    )
    q_SKGH = q_SNH.reshape(S, k_SKH.shape[1], -1, H)

    def attention_to(m: int, ahead: int):
        """[S, N], to `ahead` tokens after the place of the m-th time before this."""
        z_SKG = jnp.einsum(
            "SKGH,SKH->SKG",
            q_SKGH,
            jnp.roll(k_SKH, m * size - ahead, axis=0),
            preferred_element_type=jnp.float32,
        )
        a_SN = jnp.exp(z_SKG.reshape(S, N) * scale - lse_1SN[0])
        return jnp.where((place_S - m * size >= first)[:, None], a_SN, 0.0)

    again_S1 = (place_S >= first + size)[:, None]
    found = []
    for ahead in (0, 1):
        paid_SN = attention_to(1, ahead)
        for m in range(2, REPEATS):
            paid_SN += attention_to(m, ahead)
        found.append(paid_SN.mean(axis=0, where=again_S1))
    return jnp.stack(found)
